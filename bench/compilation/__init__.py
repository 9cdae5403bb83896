"""Compiling the Triton kernels ahead of time, for `python -m bench compile`."""
