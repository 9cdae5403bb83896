"""The method: gate, objectives, advantages, and what the loss sums."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hpt.config.sections.section import (
    LARGEST_COEFFICIENT,
    Coefficient,
    FunctionReference,
    LearningRate,
    Options,
    ResponseLength,
    Section,
)


class GateConfig(Section):
    kind: Literal["switch", "rl", "sft", "both", "table", "function"] = Field(
        "switch", description="switch, table, function: by P, the mean score; rl, sft, both: always the same"
    )
    gamma: int | float = Field(
        0, ge=0, description="switch: RL where P > gamma. An integer counts rollouts, a float is a share"
    )
    table: Literal["soft-1", "soft-2", "soft-3"] | list[list[Coefficient]] | None = Field(
        None,
        description="[alpha, beta] or [alpha, beta, off] by P: the first row at P = 0, the last at P = 1, linear "
        "between rows; or a table of the published code",
    )
    function: FunctionReference | None = Field(None, description="P -> (alpha, beta) or (alpha, beta, off)")
    reads: str = Field(
        "verifier",
        description="what says which rollouts are right: the verifier, or the name of a function in rewards",
    )
    threshold: float | None = Field(
        None, description="a rollout is right from this value of the reward in gate.reads on; needed with one"
    )

    @property
    def reads_score(self) -> bool:
        """Whether P changes its decision."""
        return self.kind in ("switch", "table", "function")

    @property
    def needs_rollouts(self) -> bool:
        return self.kind != "sft"

    @property
    def needs_demonstrations(self) -> bool:
        return self.kind != "rl"


class OverlongConfig(Section):
    """Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13), added to the rewards but not to the scores."""

    max_tokens: ResponseLength | None = Field(
        None, description="length at which the penalty is full; default: rollout.max_tokens"
    )
    cache: int | float = Field(
        0.2,
        gt=0,
        description="tokens before that length over which the penalty grows; a float is a share of the length",
    )
    penalty: float = Field(1.0, gt=0, le=LARGEST_COEFFICIENT, description="the full penalty")


class RLConfig(Section):
    objective: str = Field(
        "REINFORCE",
        description="a preset of upge: REINFORCE, PPO, GRPO, DrGRPO, DAPO, CISPO, GSPO, SAPO; or module:function, "
        "(logprobs, batch) -> loss per token",
    )
    options: Options = Field({}, description="the preset's own arguments, e.g. {clip_high: 0.28}")
    advantage: str = Field(
        "mean",
        description="mean, mean_std, leave_one_out: within a question's rollouts; batch, none, sign; gae: by the "
        "critic; or module:function, rewards of each question's rollouts -> advantages",
    )
    overlong: OverlongConfig | None = Field(
        None, description="penalty on long rollouts (DAPO), e.g. {cache: 0.2, penalty: 0.5}; null: none"
    )
    coef: Coefficient = Field(1.0, description="weight of the RL half of the loss")


class CriticConfig(Section):
    """The value model of `rl.advantage: gae`; its optimizer is otherwise as in `optimizer`."""

    lr: LearningRate = Field(1e-5, description="learning rate of the critic")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    clip: float | None = Field(0.2, gt=0, description="clip of a value around the one at sampling time; null: no clip")


class SFTConfig(Section):
    objective: str = Field("SFT", description="SFT or DFT, or module:function as in rl")
    options: Options = Field({}, description="as in rl")
    coef: Coefficient = Field(1.0, description="weight of SFT on demonstrations in the loss")


class OffPolicyConfig(Section):
    objective: str = Field("LUFFY", description="LUFFY or SRFT, or module:function as in rl")
    options: Options = Field({}, description="as in rl")
    advantage: Literal["one", "mean", "mean_std"] = Field(
        "one",
        description="advantage of the demonstration. one: 1. mean, mean_std: it replaces one of the rollout.n "
        "rollouts, with score 1, in the group that advantages are computed over",
    )
    coef: Coefficient = Field(0.0, description="weight of off-policy RL on demonstrations in the loss")


class LossConfig(Section):
    aggregation: Literal["sequence", "token", "constant", "official"] = Field(
        "sequence",
        description="sequence: mean over questions, rollouts, tokens. token: mean over tokens, of "
        "rollouts and off-policy rows together, and of SFT rows. "
        "constant: as sequence, with rollout.max_tokens instead of a rollout's length (Dr. GRPO). "
        "official: the published code's, which depends on the micro-batches",
    )
    entropy_coef: Coefficient = Field(0.0, description="weight of the entropy bonus")
    kl_coef: Coefficient = Field(
        0.0,
        description="weight of the k3 estimate of the KL divergence from model.path on rollouts; above 0 every rollout "
        "reaches the model, those of advantage 0 too",
    )
    tis: Literal["none", "token", "sequence"] = Field(
        "none",
        description="truncated importance ratio pi_old / pi_engine of rollouts, per token or per sequence: it "
        "multiplies the policy term, not the KL penalty or the entropy bonus",
    )
    tis_mode: Literal["clip", "mask"] = Field(
        "clip", description="a ratio above tis_clip counts as tis_clip (clip) or as 0 (mask)"
    )
    tis_clip: float = Field(2.0, gt=1, le=LARGEST_COEFFICIENT, description="largest ratio that is not truncated")
    entropy_weights: bool = Field(
        False,
        description="SRFT: SFT rows weighted by exp(-H) / 2, rollouts with a positive advantage by exp(H) / 10, "
        "with H the mean entropy of the row's tokens",
    )
    backend: Literal["auto", "torch", "triton", "reference"] = Field(
        "auto", description="backend of the fused loss; auto: triton on a GPU, else torch"
    )
