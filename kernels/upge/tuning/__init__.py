"""Measuring the kernels of the Triton backend on one GPU, for `upge tune`."""
