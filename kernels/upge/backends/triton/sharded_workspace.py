"""The Triton workspace of a head that is sharded over the vocabulary (see `upge.vocabulary`).

All ranks use the anchor of the rank that holds the target, so their sums of exp(z - a) add up. Three vectors and two
sums of each chunk of tokens are combined, and its dh.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...vocabulary import VocabularyShard
from ..workspace import Statistics
from .workspace import Chunk, Partials, TritonWorkspace


class ShardedTritonWorkspace(TritonWorkspace):
    """Targets that are entries of another rank are -1 here."""

    @property
    def shard(self) -> VocabularyShard:
        assert self.head.shard is not None
        return self.head.shard

    def _chunk(self, rows: Tensor) -> Chunk:
        chunk = super()._chunk(rows)
        targets, here = self.shard.local(chunk.targets)
        return replace(chunk, targets=targets.masked_fill(~here, -1))

    def _anchor(self, chunk: Chunk) -> Tensor:
        anchor = super()._anchor(replace(chunk, targets=chunk.targets.clamp(min=0)))
        return self.shard.sum(anchor.masked_fill_(chunk.targets < 0, 0.0))

    def _reanchor(self, chunk: Chunk, anchor: Tensor, partials: Partials) -> tuple[Tensor, Tensor]:
        self.shard.sum(partials.target_logit.masked_fill_(chunk.targets < 0, 0.0))
        top = self.shard.gathered(partials.tops.amax(1, keepdim=True)).amax(0)
        return super()._reanchor(chunk, anchor, replace(partials, tops=top))

    def _statistics(self, chunk: Chunk, anchor: Tensor, partials: Partials, top1: Tensor, keep: bool) -> Statistics:
        sums, moments = (
            self.shard.gathered(partial.sum(1, keepdim=True)).sum(0) for partial in (partials.sums, partials.moments)
        )
        return super()._statistics(chunk, anchor, replace(partials, sums=sums, moments=moments), top1, keep)

    def _hidden_gradient(self, exps: Tensor, scale: Tensor) -> Tensor:
        return self.shard.sum(super()._hidden_gradient(exps, scale))
