"""The rows that have to be computed again with another anchor, and whether the target has the largest logit.

An anchor is good if no exp(z_j - a) of another entry can overflow fp32, and if the target's own logit is near it: then
S / exp(z_y - a) is S relative to the target, with all its digits. The first anchor fails the former where the target
is very unlikely, and the latter where logits are so large that two orders of summation differ by more than 1. The
second anchor is a logit of the GEMM: the target's, or the largest where that is too far above it.
"""

import triton
import triton.language as tl

NEAR = tl.constexpr(1.0)  # largest |z_y - a| of a target that counts as near its anchor


@triton.jit(do_not_specialize=["M", "tiles"])
def reanchor_kernel(
    tops,  # (tiles, M) fp32: the largest raw logit but the target's, in each vocabulary tile
    target_logit,  # (M,) fp32: the target's raw logit
    inverse_temperature,  # (M,) fp32
    anchor,  # in and out (M,) fp32
    redo,  # out (M,) int8: 1 where the anchor changed
    top1,  # out (M,) int8: 1 where no other entry has a larger logit
    M,
    tiles,
    limit,  # the largest z_j - a
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (M / ROWS,)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    partial = tl.full([BLOCK, ROWS], float("-inf"), tl.float32)
    for start in range(0, tiles, BLOCK):
        tile = (start + tl.arange(0, BLOCK))[:, None]
        found = tl.load(tops + tile * M + rows[None, :], mask=tile < tiles, other=float("-inf"))
        partial = tl.maximum(partial, found)
    top = tl.max(partial, 0)
    u = tl.load(target_logit + rows)
    a = tl.load(anchor + rows)
    inverse = tl.load(inverse_temperature + rows)
    good = (tl.abs(u - a) * inverse <= NEAR) & ((top - a) * inverse <= limit)  # False for NaN
    second = tl.where((top - u) * inverse <= limit, u, top)
    tl.store(anchor + rows, tl.where(good, a, second))
    tl.store(redo + rows, tl.where(good, 0, 1).to(tl.int8))
    tl.store(top1 + rows, (u >= top).to(tl.int8))
