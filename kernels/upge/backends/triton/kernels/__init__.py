"""The Triton kernels, one per file. No code here but functions that run on the GPU."""
