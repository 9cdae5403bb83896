"""From E to the gradient of the logits, in place, where an entropy coefficient makes it more than a multiple of E.

E_j = exp(z_j - a) is enough, since log E_j is z_j - a. With total = exp(z_y - a) + S, and S the sum of the others,

    d loss / d z_j = -p_j (g - k + q (log p_j + H)),         p_j = E_j / total,   log p_j = log E_j - log(total)
    d loss / d z_y = g (1 - p_y) + k p_y - q p_y (l + H),    1 - p_y = S / total
    d z / d raw    = slope of the cap / T                    (the row's factor applies 1 / T)

With a soft-cap, `exps` has E times the slope, and z_j - a comes from `distances` (see `logits.py`). An entry whose E
underflowed has no gradient in fp32 either. This pass reads and writes each entry of E once; a GEMM does 2 D operations
per entry.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n", "V"])
def logit_gradient_kernel(
    exps,  # in and out (n, exps_stride): E, times the cap's slope where HAS_SOFTCAP
    distances,  # (n, exps_stride): (exp(|z - a|) - 1) sign(z - a); read where HAS_SOFTCAP
    targets,  # (n,) int32; below 0 where another rank holds the target
    target_slope,  # (n,) fp32: the cap's slope at the target; read where HAS_SOFTCAP
    logprobs,  # (n,) fp32: l
    entropy,  # (n,) fp32: H
    log_total,  # (n,) fp32
    share,  # (n,) fp32: exp(z_y - a)
    others,  # (n,) fp32: S
    g,  # (n,) fp32: d loss / d l
    q,  # (n,) fp32: d loss / d H
    k,  # (n,) fp32: d loss / d lse; read where HAS_K
    n,
    V,
    exps_stride,
    HAS_SOFTCAP: tl.constexpr,
    HAS_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(n / ROWS), ceil(V / BLOCK))."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    live = rows < n
    inside = live[:, None] & (columns < V)
    places = rows.to(tl.int64)[:, None] * exps_stride + columns
    e = tl.load(exps + places, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(targets + rows, mask=live, other=0)
    l = tl.load(logprobs + rows, mask=live, other=0.0)
    h = tl.load(entropy + rows, mask=live, other=0.0)
    log_whole = tl.load(log_total + rows, mask=live, other=0.0)
    p = tl.load(share + rows, mask=live, other=1.0)
    s = tl.load(others + rows, mask=live, other=0.0)
    g_row = tl.load(g + rows, mask=live, other=0.0)
    q_row = tl.load(q + rows, mask=live, other=0.0)
    own = g_row * s - q_row * p * tl.maximum(l + h, -1e30)
    if HAS_K:
        k_row = tl.load(k + rows, mask=live, other=0.0)
        own += k_row * p
        g_row -= k_row
    if HAS_SOFTCAP:
        own *= tl.load(target_slope + rows, mask=live, other=0.0)
        signed = tl.load(distances + places, mask=inside, other=0.0).to(tl.float32)
        size = tl.log(1.0 + tl.abs(signed))
        distance = tl.where(signed < 0.0, -size, size)
    else:
        distance = tl.log(tl.where(e > 0.0, e, 1.0))
    gradient = -e * (g_row[:, None] + q_row[:, None] * (distance + (h - log_whole)[:, None]))
    gradient = tl.where(columns == y[:, None], own[:, None], gradient) / (p + s)[:, None]
    tl.store(exps + places, gradient.to(exps.dtype.element_ty), mask=inside)
