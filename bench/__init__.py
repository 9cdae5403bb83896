"""Benchmarks of the kernels, of training steps, and of the paper's comparison: `python -m bench COMMAND`."""
