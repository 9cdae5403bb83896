"""factor h, the operand of dW. 0 in rows of padding, so that they add nothing."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def scaled_hidden_kernel(
    hidden,  # (M, D)
    factor,  # (n,) fp32
    out,  # out (M, D), in the dtype of E
    n,
    D,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (M / ROWS, ceil(D / BLOCK))."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (columns < D)[None, :]
    places = rows.to(tl.int64)[:, None] * D + columns[None, :]
    h = tl.load(hidden + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(factor + rows, mask=rows < n, other=0.0)
    tl.store(out + places, (h * scale[:, None]).to(out.dtype.element_ty), mask=inside)
