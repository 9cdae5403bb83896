"""From a product h w^T to the logit z, shared by the kernels that compute logits."""

import triton
import triton.language as tl


@triton.jit
def scaled_logit(product, bias, inverse_temperature, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """cap(product + bias) / T, all fp32. tanh(x) = 2 sigmoid(2x) - 1 has an absolute error of 2^-23, times softcap."""
    z = product
    if HAS_BIAS:
        z += bias
    if HAS_SOFTCAP:
        z = softcap * (2.0 * tl.sigmoid(2.0 * z / softcap) - 1.0)
    return z * inverse_temperature
