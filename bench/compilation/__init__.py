"""Compiling the Triton kernels ahead of time, for `python -m bench compile`."""

import os

os.environ.pop("TRITON_INTERPRET", None)  # Triton and upge read it when they are imported
