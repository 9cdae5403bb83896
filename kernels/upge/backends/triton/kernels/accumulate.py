"""Add a tile of a chunk's product to the sum of dW over chunks, shared by the kernels that compute the product.

Each tile of dW belongs to one program, which reads it, adds the chunk's product in fp32 and writes it back. The first
chunk writes its product without reading.
"""

import triton
import triton.language as tl

from .split import joined, sixteen_digits


@triton.jit
def accumulate(
    product,  # (BM, n) fp32
    high,  # in and out (V, D): fp32, or where HAS_LOW its upper 16 bits as int16
    low,  # in and out (V, D) uint8: the next eight bits; used where HAS_LOW
    entry,  # of the product's first row
    column,  # of its first column
    V,
    D,
    HAS_LOW: tl.constexpr,
    FIRST: tl.constexpr,  # whether this is the first chunk
    DESCRIPTORS: tl.constexpr,  # high and low are descriptors of blocks (BM, n / PARTS), else pointers
    PARTS: tl.constexpr,  # the old and new values of a wide tile do not fit the registers
    BM: tl.constexpr,
    n: tl.constexpr,
):
    if PARTS > 1:
        left, right = tl.split(tl.permute(tl.reshape(product, (BM, 2, n // 2)), (0, 2, 1)))
        accumulate(left, high, low, entry, column, V, D, HAS_LOW, FIRST, DESCRIPTORS, PARTS // 2, BM, n // 2)
        accumulate(right, high, low, entry, column + n // 2, V, D, HAS_LOW, FIRST, DESCRIPTORS, PARTS // 2, BM, n // 2)
    elif DESCRIPTORS:
        if not FIRST:
            product += joined(high.load([entry, column]), low.load([entry, column]))
        bits = sixteen_digits(product)
        high.store([entry, column], (bits >> 16).to(tl.int16))
        low.store([entry, column], (bits >> 8).to(tl.uint8))
    else:
        entries, columns = entry + tl.arange(0, BM), column + tl.arange(0, n)
        places = entries.to(tl.int64)[:, None] * D + columns[None, :]
        inside = (entries < V)[:, None] & (columns < D)[None, :]
        if HAS_LOW:
            if not FIRST:
                upper = tl.load(high + places, mask=inside, other=0)
                product += joined(upper, tl.load(low + places, mask=inside, other=0))
            bits = sixteen_digits(product)
            tl.store(high + places, (bits >> 16).to(tl.int16), mask=inside)
            tl.store(low + places, (bits >> 8).to(tl.uint8), mask=inside)
        else:
            if not FIRST:
                product += tl.load(high + places, mask=inside, other=0.0)
            tl.store(high + places, product, mask=inside)
