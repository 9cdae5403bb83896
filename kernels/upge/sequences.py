"""Sums and means over the tokens of a sequence. Its tokens may lie anywhere; the order of summation is fixed."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_sum(values: Tensor, ids: Tensor) -> Tensor:
    """For each token, the sum of the float64 `values` (n,) of the tokens with its id."""
    return _reduce(values, ids, mean=False)


def sequence_mean(values: Tensor, ids: Tensor) -> Tensor:
    """For each token, the mean of the float64 `values` (n,) of the tokens with its id."""
    return _reduce(values, ids, mean=True)


def _reduce(values: Tensor, ids: Tensor, mean: bool) -> Tensor:
    order = torch.argsort(ids, stable=True)
    lengths = torch.unique_consecutive(ids[order], return_counts=True)[1]
    if lengths.numel() == 0:
        return values
    totals = torch.segment_reduce(values[order], "sum", lengths=lengths)
    if mean:
        totals = totals / lengths
    return torch.empty_like(values).index_copy_(0, order, totals.repeat_interleave(lengths))
