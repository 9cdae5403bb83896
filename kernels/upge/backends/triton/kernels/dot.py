"""The product of two tiles, shared by the GEMM kernels."""

import triton
import triton.language as tl

from ... import plan

INTERPRETED = tl.constexpr(plan.INTERPRETED)


@triton.jit
def add_dot(total, a, b, PRECISION: tl.constexpr):
    """total + a b, summed in fp32."""
    if INTERPRETED:  # the interpreter would multiply the bits of bf16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
