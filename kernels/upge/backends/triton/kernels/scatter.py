"""dh = factor E W: add up the parts of the product, and write each row to its token."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n", "M"])
def scatter_kernel(
    partial,  # (SPLITS, M, D) fp32
    factor,  # (n,) fp32
    rows,  # (n,) int64: the chunk's tokens
    out,  # out (N, D)
    n,
    M,
    D,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(n / ROWS), ceil(D / BLOCK))."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    inside = live[:, None] & (columns < D)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for part in tl.static_range(SPLITS):
        places = (i.to(tl.int64)[:, None] + M.to(tl.int64) * part) * D + columns[None, :]
        total += tl.load(partial + places, mask=inside, other=0.0)
    total *= tl.load(factor + i, mask=live, other=0.0)[:, None]
    row = tl.load(rows + i, mask=live, other=0)
    tl.store(out + row[:, None] * D + columns[None, :], total.to(out.dtype.element_ty), mask=inside)
