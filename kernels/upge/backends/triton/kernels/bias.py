"""db += sum over the chunk's tokens of factor E."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n", "V"])
def bias_kernel(
    exps,  # (n, exps_stride)
    factor,  # (n,) fp32
    out,  # in and out (V,) fp32
    n,
    V,
    exps_stride,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Grid (ceil(V / BN),)."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros([BN], tl.float32)
    for start in range(0, n, BM):
        rows = start + tl.arange(0, BM)
        inside = (rows < n)[:, None] & (columns < V)[None, :]
        e = tl.load(exps + rows.to(tl.int64)[:, None] * exps_stride + columns[None, :], mask=inside, other=0.0)
        scale = tl.load(factor + rows, mask=rows < n, other=0.0)
        total += tl.sum(e.to(tl.float32) * scale[:, None], 0)
    tl.store(out + columns, tl.load(out + columns, mask=columns < V, other=0.0) + total, mask=columns < V)
