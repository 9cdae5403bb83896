"""The Triton workspace of a head that is sharded over the vocabulary (see `upge.vocabulary`).

All ranks use the anchor of the rank that holds the target, so their sums of exp(z - a) add up. Three vectors and two
sums of each chunk of tokens are combined, and its dh.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...vocabulary import VocabularyShard
from ..workspace import Statistics
from .launch import LogitsBuffers
from .workspace import TritonWorkspace


class ShardedTritonWorkspace(TritonWorkspace):
    """Targets that are entries of another rank are -1 here, and their anchors and logits 0."""

    @property
    def shard(self) -> VocabularyShard:
        assert self.head.shard is not None
        return self.head.shard

    def _gather(self, rows: Tensor, padded: int, exps: tuple[Tensor, ...]) -> LogitsBuffers:
        buffers = super()._gather(rows, padded, exps)
        self.shard.sum(buffers.anchor)
        return buffers

    def _reanchor(self, buffers: LogitsBuffers) -> tuple[Tensor, Tensor]:
        self.shard.sum(buffers.target_logit.masked_fill_(buffers.targets < 0, 0.0))
        top = self.shard.gathered(buffers.tops.amax(0, keepdim=True)).amax(0)
        return super()._reanchor(replace(buffers, tops=top))

    def _statistics(self, buffers: LogitsBuffers, top1: Tensor, n: int) -> Statistics:
        sums, moments = (
            self.shard.gathered(partial.sum(0, keepdim=True)).sum(0) for partial in (buffers.sums, buffers.moments)
        )
        return super()._statistics(replace(buffers, sums=sums, moments=moments), top1, n)

    def _hidden_product(self, exps: Tensor) -> Tensor:
        return self.shard.sum(super()._hidden_product(exps).sum(0, keepdim=True))
