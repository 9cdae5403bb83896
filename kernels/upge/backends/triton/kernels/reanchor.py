"""Rows whose target is so unlikely that exp(z - z_y) could overflow fp32 get their maximum as the anchor."""

import triton
import triton.language as tl


@triton.jit
def reanchor_kernel(
    tops,  # (M, tiles) fp32: max of z - anchor over each vocabulary tile
    anchor,  # in and out (M,) fp32
    redo,  # out (M,) int8: 1 where the anchor changed
    M,
    tiles,
    limit,  # differences up to here are safe
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(M / ROWS),)."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    live = rows < M
    top = tl.full([ROWS, BLOCK], float("-inf"), tl.float32)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        inside = live[:, None] & (tile < tiles)[None, :]
        top = tl.maximum(top, tl.load(tops + rows[:, None] * tiles + tile[None, :], mask=inside, other=float("-inf")))
    highest = tl.max(top, 1)
    unsafe = highest > limit
    z = tl.load(anchor + rows, mask=live, other=0.0)
    tl.store(anchor + rows, tl.where(unsafe, z + highest, z), mask=live)
    tl.store(redo + rows, unsafe.to(tl.int8), mask=live)
