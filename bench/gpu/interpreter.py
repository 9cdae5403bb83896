"""Triton's interpreter, made to compute what a GPU does. Without a GPU, tests and rehearsals run kernels in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within it a row's bits do not depend on its position in a tile, and casts to bfloat16 round to nearest even."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(builder: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
        # NumPy's matmul rounds a row by its position on CPUs without AVX-512.
        product = np.zeros_like(total.data)
        for k in range(a.data.shape[1]):
            product += a.data[:, k, None] * b.data[None, k, :]
        return TensorHandle(product + total.data, total.dtype.scalar)

    def cast_impl(builder: Any, src: Any, dst_type: Any) -> Any:
        # The interpreter cuts bits off.
        dtypes = src.dtype.scalar, dst_type.scalar
        if dtypes == (tl.float32, tl.bfloat16):
            bits = np.ascontiguousarray(src.data).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            rounded = np.where(np.isnan(src.data), 0x7FC0, rounded)
            return TensorHandle(rounded.astype(np.uint16), tl.bfloat16)
        if dtypes == (tl.bfloat16, tl.float32):
            return TensorHandle((src.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        return cast(builder, src, dst_type)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    try:
        yield
    finally:
        InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = dot, cast
