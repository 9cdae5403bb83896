"""Micro-batches: an update's rows laid out for the model, within a budget of tokens and over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from hpt.method.official import Reweight
from hpt.method.rows import Row, Signal
from hpt.support.distributed import ALONE, World


@dataclass(frozen=True)
class MicroBatch:
    """Rows laid out for the model, and per-token numbers for the loss: N response tokens in all, row after row.

    Without rows it is a no-op that keeps collectives in step: one token of weight 0, counted nowhere.
    """

    rows: list[Row]
    input_ids: torch.Tensor  # (B, L) int64
    position_ids: torch.Tensor  # (B, L) int64; restarts at 0 where a packed row begins
    positions: torch.Tensor  # (N,) int64: index into (B * L) of the hidden state that predicts the token
    targets: torch.Tensor  # (N,) int64
    objective_index: torch.Tensor  # (N,) int64: a Signal
    advantages: torch.Tensor  # (N,) float32
    weights: torch.Tensor  # (N,) float32
    entropy_bonus: torch.Tensor  # (N,) float32: 1 where the token has the entropy bonus, else 0
    sequence_ids: torch.Tensor  # (N,) int64
    rollout_logprobs: torch.Tensor  # (N,) float32; nan where a row has none
    old_logprobs: torch.Tensor  # (N,) float32; nan where a row has none
    ref_logprobs: torch.Tensor  # (N,) float32; either all rows have them or none has (nan)

    @property
    def penalised(self) -> bool:
        """Whether its rows have a KL penalty."""
        return any(row.ref_logprobs is not None for row in self.rows)

    def to(self, device: torch.device) -> MicroBatch:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MicroBatcher:
    """Makes this rank's micro-batches of an update's rows.

    max_tokens: tokens of a micro-batch, padding included; a longer row is a micro-batch by itself.
    packed: whether rows are packed without padding.
    least: micro-batches that every rank runs at least; missing ones are empty.
    """

    max_tokens: int
    packed: bool
    device: torch.device
    world: World = ALONE
    least: int = 0

    def __call__(self, rows: Sequence[Row], reweight: Reweight | None = None) -> Iterator[MicroBatch]:
        """Ranks with fewer micro-batches run empty ones, since a forward pass may be a collective.

        Rows without signal are left out. `reweight` may give the rows of each micro-batch other weights.
        """
        own = rows_of_rank([row for row in rows if row.has_signal], self.world)
        batches = micro_batches(own, self.max_tokens, packed=self.packed, reweight=reweight)
        count = max(self.least, *self.world.gather(len(batches)))
        for batch in batches:
            yield batch.to(self.device)
        for _ in range(count - len(batches)):
            yield empty_batch().to(self.device)

    def measure(
        self, rows: Sequence[Row], function: Callable[[MicroBatch], torch.Tensor]
    ) -> list[tuple[Row, list[float]]]:
        """Each row that has signal with its response tokens' numbers under `function`, on every rank.

        function: micro-batch -> (N,) numbers. rows: their `index` tells them apart.
        """
        own: dict[int, list[float]] = {}
        for batch in self(rows):
            numbers = function(batch)
            if batch.rows:
                parts = numbers.split([row.response_length for row in batch.rows])
                for row, part in zip(batch.rows, parts, strict=True):
                    own[row.index] = part.tolist()
        found: dict[int, list[float]] = {}
        for part_of_rank in self.world.gather(own):
            found |= part_of_rank
        return [(row, found[row.index]) for row in rows if row.index in found]


def rows_of_rank(rows: Sequence[Row], world: World) -> list[Row]:
    """The rows that one rank trains on: longest first, each goes to the rank with the fewest tokens so far."""
    tokens, own = [0] * world.size, []
    for row in _longest_first(rows):
        rank = tokens.index(min(tokens))
        tokens[rank] += len(row.tokens)
        if rank == world.rank:
            own.append(row)
    return own


def micro_batches(
    rows: Sequence[Row], max_tokens: int, *, packed: bool, reweight: Reweight | None = None
) -> list[MicroBatch]:
    """Splits rows into micro-batches of at most `max_tokens` tokens, padding included.

    Rows with a KL penalty and rows without are in different micro-batches.
    """
    parts: list[list[Row]] = []
    for penalised in (True, False):
        alike = [row for row in rows if (row.ref_logprobs is not None) == penalised]
        parts += split_rows(alike, max_tokens, packed=packed)
    if reweight:
        parts = [reweight(part) for part in parts]
    return [packed_batch(part) if packed else padded_batch(part) for part in parts]


def split_rows(rows: Sequence[Row], max_tokens: int, *, packed: bool) -> list[list[Row]]:
    """The rows of each micro-batch: longest first, each row into the current part while it fits."""
    parts: list[list[Row]] = []
    for row in _longest_first(rows):
        if parts and tokens_of([*parts[-1], row], packed=packed) <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def tokens_of(rows: Sequence[Row], *, packed: bool) -> int:
    """Tokens of a micro-batch, padding included."""
    if packed:
        return sum(len(row.tokens) for row in rows)
    return len(rows) * max(len(row.tokens) for row in rows)


def _longest_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -len(row.tokens))


def empty_batch() -> MicroBatch:
    """A micro-batch without rows: one token of weight 0, so that a rank without work takes part in collectives."""
    return replace(padded_batch([Row([0, 0], 1, Signal.SFT, weight=0.0, old_logprobs=[0.0])]), rows=[])


def packed_batch(rows: Sequence[Row]) -> MicroBatch:
    """All rows one after the other in a single sequence, without padding: B = 1."""
    tokens = [token for row in rows for token in row.tokens]
    position_ids = torch.cat([torch.arange(len(row.tokens)) for row in rows])
    starts = [0, *accumulate(len(row.tokens) for row in rows[:-1])]
    return _micro_batch(rows, torch.tensor([tokens]), position_ids[None], starts)


def padded_batch(rows: Sequence[Row]) -> MicroBatch:
    """One row per line, padded on the right: in a causal model no token of a row sees its padding."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in rows])
    position_ids = torch.arange(width).expand(len(rows), width)
    return _micro_batch(rows, tokens, position_ids, [index * width for index in range(len(rows))])


def _micro_batch(
    rows: Sequence[Row], input_ids: torch.Tensor, position_ids: torch.Tensor, starts: Sequence[int]
) -> MicroBatch:
    """starts: index into (B * L) of each row's first token."""
    lengths = torch.tensor([row.response_length for row in rows])
    positions = torch.cat([_response_places(row) + (start - 1) for start, row in zip(starts, rows, strict=True)])
    return MicroBatch(
        rows=list(rows),
        input_ids=input_ids,
        position_ids=position_ids,
        positions=positions,
        targets=input_ids.flatten()[positions + 1],
        objective_index=torch.tensor([int(row.signal) for row in rows]).repeat_interleave(lengths),
        advantages=_per_token(rows, [row.advantage for row in rows]),
        weights=_per_token(rows, [row.weight for row in rows]),
        entropy_bonus=_per_token(rows, [float(row.entropy_bonus) for row in rows]),
        sequence_ids=torch.arange(len(rows)).repeat_interleave(lengths),
        rollout_logprobs=_per_token(rows, [row.rollout_logprobs for row in rows]),
        old_logprobs=_per_token(rows, [row.old_logprobs for row in rows]),
        ref_logprobs=_per_token(rows, [row.ref_logprobs for row in rows]),
    )


def _response_places(row: Row) -> torch.Tensor:
    """(response_length,) int64: where a row's response tokens stand in it."""
    places = torch.arange(row.prompt_length, len(row.tokens))
    return places if row.mask is None else places[torch.tensor(row.mask)]


def _per_token(rows: Sequence[Row], numbers: Sequence[float | list[float] | None]) -> torch.Tensor:
    """(N,) float32 from a number for each row's tokens, or one number for all of them; None stands for nan."""
    parts = []
    for row, own in zip(rows, numbers, strict=True):
        if isinstance(own, list):
            parts.append(torch.tensor(own, dtype=torch.float32))
        else:
            value = float("nan") if own is None else own
            parts.append(torch.full((row.response_length,), value, dtype=torch.float32))
    return torch.cat(parts)
