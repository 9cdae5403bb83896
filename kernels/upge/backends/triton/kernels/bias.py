"""db += sum over the chunk's tokens of scale E."""

import triton
import triton.language as tl


@triton.jit
def bias_kernel(
    exps,  # (M, exps_stride)
    scale,  # (M,) fp32
    out,  # in and out (V,) fp32
    M,
    V,
    exps_stride,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Grid (ceil(V / BN),)."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros([BN], tl.float32)
    for start in range(0, M, BM):
        rows = start + tl.arange(0, BM)
        inside = (rows < M)[:, None] & (columns < V)[None, :]
        e = tl.load(exps + rows.to(tl.int64)[:, None] * exps_stride + columns[None, :], mask=inside, other=0.0)
        factor = tl.load(scale + rows, mask=rows < M, other=0.0)
        total += tl.sum(e.to(tl.float32) * factor[:, None], 0)
    tl.store(out + columns, tl.load(out + columns, mask=columns < V, other=0.0) + total, mask=columns < V)
