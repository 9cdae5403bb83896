"""From E to the gradient of the logits, in place, if that is more than a multiple of E.

Without entropy bonus and soft-cap, d loss / d z_j = -(g / total) E_j. The row's factor is multiplied into the GEMMs'
operands and this pass is not needed. With them, E_j = exp(z_j - a) is still enough, since log E_j is z_j - a:

    d loss / d z_j = -p_j (g + q (log p_j + H)),   p_j = E_j / total,   log p_j = log E_j - log(total)
    d loss / d z_y = g (1 - p_y) - q p_y (l + H),  1 - p_y = S / total
    d z / d raw    = (1 - (u / softcap)^2) / T,    u = z T     (the row's factor applies 1 / T)

An entry whose E underflowed has no gradient in fp32 either. This pass reads and writes each entry of E once; a GEMM
does 2 D operations per entry.
"""

import triton
import triton.language as tl


@triton.jit
def logit_gradient_kernel(
    exps,  # in and out (M, exps_stride)
    targets,  # (M,) int64
    logprobs,  # (M,) fp32: l
    entropy,  # (M,) fp32: H
    anchor,  # (M,) fp32
    log_total,  # (M,) fp32
    total,  # (M,) fp32
    others,  # (M,) fp32: S
    inverse_temperature,  # (M,) fp32
    g,  # (M,) fp32: d loss / d l
    q,  # (M,) fp32: d loss / d H
    M,
    V,
    exps_stride,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(M / ROWS), ceil(V / BLOCK))."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    live = rows < M
    inside = live[:, None] & (columns < V)
    pointers = exps + rows.to(tl.int64)[:, None] * exps_stride + columns
    e = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(targets + rows, mask=live, other=0)[:, None]
    l = tl.load(logprobs + rows, mask=live, other=0.0)[:, None]
    h = tl.load(entropy + rows, mask=live, other=0.0)[:, None]
    log_whole = tl.load(log_total + rows, mask=live, other=0.0)[:, None]
    whole = tl.load(total + rows, mask=live, other=1.0)[:, None]
    other_share = tl.load(others + rows, mask=live, other=0.0)[:, None] / whole
    g_row = tl.load(g + rows, mask=live, other=0.0)[:, None]
    q_row = tl.load(q + rows, mask=live, other=0.0)[:, None]

    distance = tl.log(tl.where(e > 0.0, e, 1.0))
    gradient = -e / whole * (g_row + q_row * (distance - log_whole + h))
    gradient = tl.where(columns == y, g_row * other_share - q_row * tl.exp(l) * (l + h), gradient)
    if HAS_SOFTCAP:
        distance = tl.where(columns == y, l + log_whole, distance)
        inverse = tl.load(inverse_temperature + rows, mask=live, other=1.0)[:, None]
        a = tl.load(anchor + rows, mask=live, other=0.0)[:, None]
        u = (distance + a) / inverse / softcap
        gradient *= 1.0 - u * u
    tl.store(pointers, gradient.to(exps.dtype.element_ty), mask=inside)
