"""A head whose vocabulary is sharded over the ranks of a process group, as Megatron's tensor parallelism has it.

Each rank holds some rows of the weight and all hidden states. Per token it computes, over its own entries, the largest
logit m, and relative to it the sums S and M of exp(z - m) and exp(z - m) (z - m) over all entries but the target, and
the target's distance d = z_y - m, which is -inf on ranks that do not hold the target. With m* the largest m of all
ranks and shift = m - m*, the sums over the whole vocabulary are

    S* = sum over ranks of exp(shift) S,   M* = sum of exp(shift) (M + shift S),   d* = max of d + shift

Each rank's gradient of the logits is then its own. That of hidden is a sum over the vocabulary, so over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabularyShard:
    """This rank's entries [start, start + size) of `total`. largest: the size of the largest shard."""

    group: dist.ProcessGroup
    start: int
    size: int
    total: int
    largest: int

    @classmethod
    def of(cls, group: dist.ProcessGroup, weight: Tensor) -> VocabularyShard:
        """The shard of a rank that holds `weight` (size, D). A collective: every rank of the group has to call it.

        Raises ValueError where this process is not in the group or the ranks' widths D differ.
        """
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError("group: this process must be one of its ranks")
        shapes = _gathered(torch.tensor(weight.shape, device=weight.device), group).tolist()
        if len({width for _, width in shapes}) > 1:
            raise ValueError(
                f"weight: must have the same D on every rank of group; got {[width for _, width in shapes]}"
            )
        sizes = [size for size, _ in shapes]
        return cls(group, sum(sizes[:rank]), sizes[rank], sum(sizes), max(sizes))

    def local(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Targets as entries of this shard, (n,), and whether they are. Those of other shards read 0."""
        targets = targets - self.start
        here = (targets >= 0) & (targets < self.size)
        return targets.where(here, 0), here

    def combine(self, top: Tensor, distance: Tensor, others: Tensor, moment: Tensor) -> tuple[Tensor, ...]:
        """m, d, S and M of this rank, each (n,), to shift, d*, S* and M*; the latter are equal on every rank."""
        gathered = self.gathered(torch.stack([top, distance, others, moment]))
        tops, distances, sums, moments = gathered.unbind(1)
        highest = tops.amax(0)
        shifts = tops - highest
        scales = shifts.exp()
        return (
            top - highest,
            (distances + shifts).amax(0),
            (scales * sums).sum(0),
            (scales * (moments + shifts * sums)).sum(0),
        )

    def gathered(self, values: Tensor) -> Tensor:
        """The `values` of all ranks, stacked, so that reductions over the first axis are equal on every rank."""
        return _gathered(values, self.group)

    def sum(self, values: Tensor) -> Tensor:
        """Add up `values` over the ranks, in place."""
        dist.all_reduce(values, group=self.group)
        return values


def _gathered(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The ranks' `values`, stacked in their order, so that sums over them have the same bits on every rank."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values.contiguous(), group=group)
    return torch.stack(parts)
