"""Token rows: what an optimizer update trains on, with global normalisers.

Every normaliser is fixed here, over all questions of one update, before rows are dropped, packed or distributed over
ranks. So the gradient does not depend on the micro-batch size, on packing, or on which rows share a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from hpt.config.schema import Config
from hpt.method.experience import Experience
from hpt.rollout import Advantage, CriticValues, Rollout


class Signal(IntEnum):
    """What a row is trained by; also the index of its objective in the one fused call."""

    RL = 0  # a rollout
    SFT = 1  # a demonstration, imitated
    OFF_POLICY = 2  # a demonstration, by off-policy RL


@dataclass
class Row:
    """One sequence to train on: prompt and response tokens, and the loss weight w of each response token.

    Response tokens are those that are trained: all after the prompt, or those that `mask` marks among them.
    A token's loss is w (A surrogate - entropy_coef H + kl_coef KL), with the surrogate of the signal's objective. Lists
    have one number per response token, and are None unless the method asks for them.
    """

    tokens: list[int]
    prompt_length: int
    signal: Signal
    weight: float
    advantage: Advantage = 1.0
    rollout_logprobs: list[float] | None = None  # of rollouts, by the rollout engine
    old_logprobs: list[float] | None = None  # under the policy before the step's first update
    ref_logprobs: list[float] | None = None  # of rollouts, under the reference model
    values: CriticValues | None = None  # of rollouts, with a critic
    regularised: bool = False  # its entropy or KL term counts even where its advantage is 0
    entropy_bonus: bool = True  # whether it has the entropy bonus
    index: int = 0  # among the rows of its update
    mask: list[bool] | None = None  # of a conversation with several trained turns: which tokens after the prompt are

    @property
    def response_length(self) -> int:
        return len(self.tokens) - self.prompt_length if self.mask is None else sum(self.mask)

    @property
    def advantages(self) -> list[float]:
        """One per response token."""
        if isinstance(self.advantage, list):
            return self.advantage
        return [self.advantage] * self.response_length

    @property
    def has_signal(self) -> bool:
        """Whether the row has a gradient: a row of weight or advantage 0 has none, and never reaches the model."""
        if self.weight == 0:
            return False
        if self.regularised:
            return True
        return any(self.advantage) if isinstance(self.advantage, list) else self.advantage != 0


def token_rows(experiences: Sequence[Experience], config: Config) -> list[Row]:
    """The rows of one optimizer update, those without signal included.

    The loss is the mean over the questions of alpha L_RL + beta L_SFT + off L_OFF (arXiv 2509.04419, eq. 9, with
    `off` for methods that do off-policy RL). `loss.aggregation` says what these are for a question with rollouts
    o_1..o_n and demonstration d:

        sequence   L_RL = 1/n sum_i 1/|o_i| sum_t,               L_SFT = 1/|d| sum_t,   L_OFF = 1/|d| sum_t
        constant   as sequence, with rollout.max_tokens instead of |o_i|, and of |d| in L_OFF
        token      no mean over questions: the sum over tokens / the number of tokens in the update, of rollouts and
                   off-policy demonstrations together, and of SFT
        official   no normaliser yet: `official_weights` applies the published ones to each micro-batch

    With `data.loss_on: all`, |d| and the sum over d of L_SFT are over the tokens of all assistant turns.
    A demonstration that is a member of its question's group (`off_policy.advantage`) counts in n, and L_OFF has that
    1/n.
    """
    normaliser = _Normaliser.over(experiences, config)
    rows: list[Row] = []
    for experience in experiences:
        if experience.decision.alpha > 0:
            rows += [_rollout_row(experience, rollout, normaliser, config) for rollout in experience.rl_rollouts]
        if _is_imitated(experience, config):
            rows.append(_sft_row(experience, normaliser, config))
        if experience.decision.off * config.off_policy.coef > 0:
            rows.append(_off_policy_row(experience, normaliser, config))
    for index, row in enumerate(rows):
        row.index = index
    return rows


def _rollout_row(experience: Experience, rollout: Rollout, normaliser: _Normaliser, config: Config) -> Row:
    share = experience.decision.alpha * config.rl.coef
    members = len(experience.rl_rollouts) + experience.demonstration_in_group(config)
    return Row(
        tokens=experience.prompt + rollout.tokens,
        prompt_length=len(experience.prompt),
        signal=Signal.RL,
        weight=share * normaliser.weight(Signal.RL, len(rollout.tokens), members),
        advantage=rollout.advantage,
        rollout_logprobs=rollout.logprobs,
        values=rollout.values,
        regularised=_entropy_counts_everywhere(config) or config.loss.kl_coef > 0,
    )


def _sft_row(experience: Experience, normaliser: _Normaliser, config: Config) -> Row:
    share = experience.decision.beta * config.sft.coef
    weight = share * normaliser.weight(Signal.SFT, experience.imitated_tokens, members=1)
    if turns := experience.conversation:
        return Row(turns.tokens, turns.prompt_length, Signal.SFT, weight, mask=turns.mask)
    return Row(experience.prompt + experience.demonstration, len(experience.prompt), Signal.SFT, weight)


def _is_imitated(experience: Experience, config: Config) -> bool:
    return experience.decision.beta * config.sft.coef > 0


def _off_policy_row(experience: Experience, normaliser: _Normaliser, config: Config) -> Row:
    share = experience.decision.off * config.off_policy.coef
    members = len(experience.rollouts) + 1 if experience.demonstration_in_group(config) else 1
    # The published code counts the entropy of a demonstration once; here that is in its SFT row, if it has one.
    bonus = config.loss.aggregation != "official" or not _is_imitated(experience, config)
    return Row(
        tokens=experience.prompt + experience.demonstration,
        prompt_length=len(experience.prompt),
        signal=Signal.OFF_POLICY,
        weight=share * normaliser.weight(Signal.OFF_POLICY, len(experience.demonstration), members),
        advantage=experience.demonstration_advantage,
        regularised=bonus and _entropy_counts_everywhere(config),
        entropy_bonus=bonus,
    )


def _entropy_counts_everywhere(config: Config) -> bool:
    """The published code adds the entropy bonus to all-solved groups, too; elsewhere it goes with a policy gradient."""
    return config.loss.aggregation == "official" and config.loss.entropy_coef > 0


@dataclass(frozen=True)
class _Normaliser:
    """Counts over all questions of an update, and the weight that they give a row."""

    aggregation: str
    max_tokens: int
    questions: int
    rl_tokens: int  # of rollouts and off-policy demonstrations
    sft_tokens: int

    @classmethod
    def over(cls, experiences: Sequence[Experience], config: Config) -> _Normaliser:
        rl_tokens = sft_tokens = 0
        for experience in experiences:
            if experience.decision.alpha > 0:
                rl_tokens += sum(len(rollout.tokens) for rollout in experience.rl_rollouts)
            if experience.decision.off * config.off_policy.coef > 0:
                rl_tokens += len(experience.demonstration)
            if experience.decision.beta > 0:
                sft_tokens += experience.imitated_tokens
        return cls(config.loss.aggregation, config.rollout.max_tokens, len(experiences), rl_tokens, sft_tokens)

    def weight(self, signal: Signal, length: int, members: int) -> float:
        """w of a row with `length` response tokens, whose signal has `members` rows in its question."""
        if self.aggregation == "official":
            return 1.0
        if self.aggregation == "token":
            return 1 / (self.sft_tokens if signal == Signal.SFT else self.rl_tokens)
        if self.aggregation == "constant" and signal != Signal.SFT:
            length = self.max_tokens
        return 1 / (self.questions * members * length)
