"""From a product h w^T to the raw logit u = cap(h w^T + b), shared by the kernels that compute logits.

The logit is z = u / T. Kernels subtract raw logits and divide the difference by T after that: a difference of nearby
floating-point numbers is exact, one of their rounded quotients is not.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
SIGN = tl.constexpr(-2147483648)  # the sign bit of an int32


@triton.jit
def tanh_and_slope(x):
    """tanh(x) and its slope 1 - tanh(x)^2, both to a few units in the last place.

    With t = exp(-2 |x|) and r = 1 / (1 + t), tanh |x| = (1 - t) r and the slope is 4 t r^2. Near 0 the difference 1 - t
    cancels. There tanh is an odd polynomial with a relative error of 4e-8, the least for |x| < 0.55.
    """
    size = tl.abs(x)
    t = tl.exp2(size * (-2 * LOG2E))
    root = tl.rsqrt(1.0 + t)  # one instruction, unlike a division
    r = root * root
    r += r * (1.0 - (1.0 + t) * r)  # a Newton step, for the last bits
    s = x * x
    near = size + size * s * (-0.33332947 + s * (0.13320725 + s * (-0.052671813 + s * 0.016437581)))
    tanh = tl.where(size < 0.55, near, (1.0 - t) * r)
    bits = tanh.to(tl.int32, bitcast=True) | (x.to(tl.int32, bitcast=True) & SIGN)
    return bits.to(tl.float32, bitcast=True), t * (2.0 * r) * (2.0 * r)


@triton.jit
def raw_logit(product, bias, softcap, inverse_softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """u = cap(product + bias) and the slope of cap there, all fp32."""
    u = product
    slope = 1.0
    if HAS_BIAS:
        u += bias
    if HAS_SOFTCAP:
        tanh, slope = tanh_and_slope(u * inverse_softcap)
        u = softcap * tanh
    return u, slope
