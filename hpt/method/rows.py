"""Token rows and micro-batches.

Every normaliser is fixed here, over all questions of one optimizer update, before rows are dropped, packed or spread
over ranks. So the gradient does not depend on the micro-batch size, on packing, or on which rows share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch

from hpt.config.schema import Config
from hpt.rollout import Rollout

RL, SFT, OFF_POLICY = 0, 1, 2
"""Index of a row's objective in the one fused call: a rollout's, and the two that a demonstration can have."""

Aggregation = Literal["sequence", "token", "constant", "official"]


Advantage = float | list[float]
"""Of a response: one number, or one a token."""


@dataclass(frozen=True)
class Values:
    """What a critic made of a rollout, one number a response token."""

    before: list[float]  # V of the state before the token, when the rollout was judged
    returns: list[float]  # what V should have been: the advantage estimate + before


@dataclass(frozen=True)
class Group:
    """One question, its rollouts and what the gate and the advantage estimator made of them."""

    prompt: list[int]
    demonstration: list[int]  # response tokens; read where beta or off > 0
    rollouts: list[Rollout]  # read where alpha > 0
    advantages: Sequence[Advantage]  # one a rollout
    alpha: float  # RL on the rollouts
    beta: float  # SFT on the demonstration
    off: float = 0.0  # off-policy RL on the demonstration
    off_advantage: float = 1.0  # the demonstration's
    values: Sequence[Values] | None = None  # one a rollout; only with a critic


@dataclass(frozen=True)
class Row:
    """One sequence to train on: prompt and response tokens, and the loss weight w of each response token.

    A token's loss is w (A surrogate - entropy_coef H), its surrogate that of the row's objective.
    """

    tokens: list[int]
    prompt_length: int
    signal: int  # RL, SFT or OFF_POLICY
    weight: float
    advantage: Advantage = 1.0
    rollout_logprobs: list[float] | None = None  # one a response token; RL rows have them
    old_logprobs: list[float] | None = None  # likewise; only where the objective or loss.tis reads them
    importance: list[float] | None = None  # likewise; only with loss.tis: factors of the weight
    ref_logprobs: list[float] | None = None  # likewise; under the start model, only with a KL penalty
    values: Values | None = None  # likewise; only with a critic
    regularised: bool = False  # its entropy or KL penalty counts even where its advantage is 0

    @property
    def response_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def has_signal(self) -> bool:
        """Whether the row has a gradient: a row of weight or advantage 0 has none, and never reaches the model."""
        if self.importance is not None and not any(self.importance):
            return False
        return self.weight != 0 and (self.regularised or any(_per_token(self.advantage, 1)))


def token_rows(groups: Sequence[Group], config: Config) -> list[Row]:
    """The rows of one optimizer update, those without signal included.

    The loss is the mean over the questions of alpha L_RL + beta L_SFT + off L_OFF (arXiv 2509.04419, eq. 9, with
    `off` for methods that do off-policy RL). `loss.aggregation` says what these are for a question with rollouts
    o_1..o_n and demonstration d:

        sequence   L_RL = 1/n sum_i 1/|o_i| sum_t,               L_SFT = 1/|d| sum_t,   L_OFF = 1/|d| sum_t
        constant   as sequence, with rollout.max_tokens in place of |o_i|, and of |d| in L_OFF
        token      no mean over questions: the sum over tokens / the number of tokens in the update, of rollouts and
                   off-policy demonstrations together, and of SFT
        official   no normaliser yet: `official_rows` applies the published ones to each micro-batch

    A demonstration that is one of its question's group (`off_policy.advantage`) counts in n, and L_OFF has that 1/n.
    """
    aggregation: Aggregation = config.loss.aggregation
    rl_tokens = sum(len(rollout.tokens) for group in groups if group.alpha > 0 for rollout in group.rollouts)
    rl_tokens += sum(len(group.demonstration) for group in groups if group.off * config.off_policy.coef > 0)
    sft_tokens = sum(len(group.demonstration) for group in groups if group.beta > 0)

    def weight(signal: int, length: int, members: int) -> float:
        """The normaliser of a row whose signal has `members` rows in the question."""
        if aggregation == "official":
            return 1.0
        if aggregation == "token":
            return 1 / (sft_tokens if signal == SFT else rl_tokens)
        if aggregation == "constant" and signal != SFT:
            length = config.rollout.max_tokens
        return 1 / (len(groups) * members * length)

    regularised = aggregation == "official" and config.loss.entropy_coef > 0
    penalised = config.loss.kl_coef > 0
    rows = []
    for group in groups:
        members = len(group.rollouts) + config.demonstration_in_group
        values: Sequence[Values | None] = group.values or [None] * len(group.rollouts)
        if group.alpha > 0:
            for rollout, advantage, value in zip(group.rollouts, group.advantages, values, strict=True):
                rows.append(
                    Row(
                        tokens=group.prompt + rollout.tokens,
                        prompt_length=len(group.prompt),
                        signal=RL,
                        weight=group.alpha * config.rl.coef * weight(RL, len(rollout.tokens), members),
                        advantage=advantage,
                        rollout_logprobs=rollout.logprobs,
                        values=value,
                        regularised=regularised or penalised,
                    )
                )
        together = members if config.demonstration_in_group else 1
        for signal, share, advantage, count in (
            (SFT, group.beta * config.sft.coef, 1.0, 1),
            (OFF_POLICY, group.off * config.off_policy.coef, group.off_advantage, together),
        ):
            if share > 0:
                rows.append(
                    Row(
                        tokens=group.prompt + group.demonstration,
                        prompt_length=len(group.prompt),
                        signal=signal,
                        weight=share * weight(signal, len(group.demonstration), count),
                        advantage=advantage,
                        regularised=regularised,
                    )
                )
    return rows


def official_rows(rows: list[Row], max_tokens: int) -> list[Row]:
    """The rows of one micro-batch with the weights of the paper's published code, written out.

        loss = sum_{RL, OFF}(A surrogate) / max_tokens + sum_SFT(surrogate) / n_SFT - entropy_coef sum_all(H) / n_all

    n counts response tokens of this micro-batch, and the losses of micro-batches are summed: so the share of SFT and of
    the entropy depends on how rows are split, which is why this is not the default. The weight that a row came with
    counts in the first two terms, not in the entropy's: w = 1 / n_all for every row, and the rest moves into A.
    """
    everything = sum(row.response_length for row in rows)
    demonstrated = sum(row.response_length for row in rows if row.signal == SFT)

    def scaled(row: Row) -> Row:
        factor = row.weight * everything / (demonstrated if row.signal == SFT else max_tokens)
        advantage = [factor * value for value in _per_token(row.advantage, row.response_length)]
        return replace(row, weight=1 / everything, advantage=advantage)

    return [scaled(row) for row in rows]


@dataclass(frozen=True)
class MicroBatch:
    """Rows laid out for the model, and for the loss one entry a response token: N in all, row after row.

    Without rows it is idle: its loss and its gradient are 0, and it counts nowhere.
    """

    rows: list[Row]
    input_ids: torch.Tensor  # (B, L) int64
    position_ids: torch.Tensor  # (B, L) int64; starts again at 0 where a packed row begins
    positions: torch.Tensor  # (N,) int64: the flat place in (B, L) whose hidden state predicts the token
    targets: torch.Tensor  # (N,) int64
    objective_index: torch.Tensor  # (N,) int64: RL, SFT or OFF_POLICY
    advantages: torch.Tensor  # (N,) float32
    weights: torch.Tensor  # (N,) float32
    sequence_ids: torch.Tensor  # (N,) int64
    rollout_logprobs: torch.Tensor  # (N,) float32; nan where a row has none
    old_logprobs: torch.Tensor  # (N,) float32; nan where a row has none
    ref_logprobs: torch.Tensor  # (N,) float32; all rows have them, or none and all is nan

    @property
    def penalised(self) -> bool:
        """Whether its rows have a KL penalty."""
        return any(row.ref_logprobs is not None for row in self.rows)

    def to(self, device: torch.device) -> MicroBatch:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


def micro_batches(
    rows: Sequence[Row],
    max_tokens: int,
    *,
    packed: bool,
    normalise: Callable[[list[Row]], list[Row]] = list,
) -> list[MicroBatch]:
    """Splits rows into micro-batches of at most `max_tokens` tokens, padding included; a longer row stands alone.

    `normalise` may give the rows of each micro-batch other weights. Rows with a KL penalty share no micro-batch with
    rows without.
    """
    parts = []
    for penalised in (True, False):
        some = [row for row in rows if (row.ref_logprobs is not None) == penalised]
        if packed:
            parts += _pack(some, lambda part: sum(len(row.tokens) for row in part), max_tokens)
        else:
            parts += _pack(some, lambda part: len(part) * len(part[0].tokens), max_tokens)
    return [(packed_batch if packed else padded_batch)(normalise(part)) for part in parts]


def share_of(rows: Sequence[Row], rank: int, ranks: int) -> list[Row]:
    """The rows of one of `ranks` processes: longest first, each to the one that has the fewest tokens so far."""
    loads, own = [0] * ranks, []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        lightest = loads.index(min(loads))
        loads[lightest] += len(row.tokens)
        if lightest == rank:
            own.append(row)
    return own


def idle_batch() -> MicroBatch:
    """A micro-batch without rows: a token of weight 0, so that a rank without work takes part in what all ranks do."""
    return replace(padded_batch([Row([0, 0], 1, SFT, weight=0.0)]), rows=[])


def _pack(rows: Sequence[Row], size: Callable[[list[Row]], int], max_tokens: int) -> list[list[Row]]:
    """Longest first, each row into the batch at hand while it fits; the first row of a batch is its longest."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        if batches and size([*batches[-1], row]) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def packed_batch(rows: list[Row]) -> MicroBatch:
    """All rows one after the other in a single sequence, without padding: B = 1."""
    tokens = [token for row in rows for token in row.tokens]
    places = [place for row in rows for place in range(len(row.tokens))]
    starts = [0, *accumulate(len(row.tokens) for row in rows[:-1])]
    return _micro_batch(rows, torch.tensor([tokens]), torch.tensor([places]), starts)


def padded_batch(rows: list[Row]) -> MicroBatch:
    """A row a line, filled up on the right, where a causal model cannot see it from the row's own tokens."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in rows])
    places = torch.arange(width).expand(len(rows), width)
    return _micro_batch(rows, tokens, places, [index * width for index in range(len(rows))])


def _micro_batch(rows: list[Row], input_ids: torch.Tensor, position_ids: torch.Tensor, starts: list[int]) -> MicroBatch:
    lengths = torch.tensor([row.response_length for row in rows])
    positions = [
        torch.arange(start + row.prompt_length - 1, start + len(row.tokens) - 1)
        for start, row in zip(starts, rows, strict=True)
    ]

    def a_token(values: list[float] | list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(lengths)

    def logprobs(name: str) -> torch.Tensor:
        known = [getattr(row, name) or [float("nan")] * row.response_length for row in rows]
        return torch.tensor([value for row in known for value in row], dtype=torch.float32)

    return MicroBatch(
        rows=list(rows),
        input_ids=input_ids,
        position_ids=position_ids,
        positions=torch.cat(positions),
        targets=torch.tensor([token for row in rows for token in row.tokens[row.prompt_length :]]),
        objective_index=a_token([row.signal for row in rows], torch.int64),
        advantages=torch.tensor(
            [value for row in rows for value in _per_token(row.advantage, row.response_length)], dtype=torch.float32
        ),
        weights=torch.tensor(
            [row.weight * factor for row in rows for factor in row.importance or [1.0] * row.response_length],
            dtype=torch.float32,
        ),
        sequence_ids=a_token(list(range(len(rows))), torch.int64),
        rollout_logprobs=logprobs("rollout_logprobs"),
        old_logprobs=logprobs("old_logprobs"),
        ref_logprobs=logprobs("ref_logprobs"),
    )


def _per_token(values: Advantage, length: int) -> list[float]:
    return values if isinstance(values, list) else [values] * length
