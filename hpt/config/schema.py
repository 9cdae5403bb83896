"""The settings of a run as one typed object. `recipe` reads it from YAML; `sections/` has its parts."""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from hpt.config.objectives import check_objective
from hpt.config.rules import broken_rules
from hpt.config.sections.data import DataConfig, PromptConfig
from hpt.config.sections.method import CriticConfig, GateConfig, LossConfig, OffPolicyConfig, RLConfig, SFTConfig
from hpt.config.sections.model import ModelConfig
from hpt.config.sections.rewards import VERIFIER, RewardCallsConfig, Rewards
from hpt.config.sections.rollout import RolloutConfig, VerifyConfig
from hpt.config.sections.section import FunctionReference, Section
from hpt.config.sections.training import (
    BatchConfig,
    CheckpointConfig,
    DeepSpeedConfig,
    EvalConfig,
    HardwareConfig,
    OptimizerConfig,
    StageConfig,
    TrackConfig,
)


def _is_path(value: str) -> str:
    """`value`, if a folder can be called that; else ValueError."""
    if not value or "\0" in value:
        raise ValueError("must be the path of a folder")
    return value


class Config(Section):
    output: Annotated[str, AfterValidator(_is_path)] = Field(description="the run's folder")
    steps: int = Field(ge=1, le=2**31 - 1, description="training steps, each on batch.questions questions")
    seed: int = Field(0, ge=0, lt=2**31, description="decides every random draw of the run")
    method: str = Field("hpt", description="a shipped method, or a YAML file of settings")
    stages: list[StageConfig] = Field(
        [], description="parts of the run in order, each starting from the weights of the one before"
    )
    prepare: FunctionReference | None = Field(
        None,
        description="called once with this config, to make a model and data files that are missing",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of torch; default: torch chooses")
    engine: Literal["local", "deepspeed"] = Field("local", description="local: one process; deepspeed: ZeRO, several")
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    hardware: HardwareConfig = HardwareConfig()
    model: ModelConfig
    data: DataConfig
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    verify: VerifyConfig = VerifyConfig()
    rewards: Rewards = Field(
        [],
        description="what RL is given: functions in TRL's form, and verifier for the verifier's score, the default",
    )
    reward_calls: RewardCallsConfig = RewardCallsConfig()
    gate: GateConfig = GateConfig()
    rl: RLConfig = RLConfig()
    critic: CriticConfig = CriticConfig()
    sft: SFTConfig = SFTConfig()
    off_policy: OffPolicyConfig = OffPolicyConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Config:
        if problems := list(broken_rules(self)):
            raise ValueError("\n  ".join(problems))
        for signal, section in (("rl", self.rl), ("sft", self.sft), ("off_policy", self.off_policy)):
            check_objective(signal, section.objective, section.options)
        return self

    @property
    def reward_weights(self) -> dict[str, float]:
        """The weight of each of the `rewards`, by name."""
        return {reward.name: reward.weight for reward in self.rewards}

    @property
    def needs_answers(self) -> bool:
        """Whether training reads the answers of `data.train`: the verifier's score goes to RL or to the gate.

        An evaluation asks the verifier wherever the held-out questions have answers.
        """
        return self.gate.needs_rollouts and (self.rewarded_by_verifier or self.gated_by_verifier)

    @property
    def rewarded_by_verifier(self) -> bool:
        return not self.rewards or VERIFIER in self.reward_weights

    @property
    def gated_by_verifier(self) -> bool:
        return self.gate.reads_score and self.gate.reads == VERIFIER

    @property
    def overlong_limits(self) -> tuple[int, int]:
        """(max_tokens, cache) of `rl.overlong`, in tokens."""
        assert self.rl.overlong is not None
        limit, cache = self.rl.overlong.max_tokens or self.rollout.max_tokens, self.rl.overlong.cache
        return limit, cache if isinstance(cache, int) else max(1, round(cache * limit))

    @property
    def demonstration_in_group(self) -> bool:
        """Whether the demonstration belongs to the group that advantages are computed over (LUFFY, SRFT)."""
        return self.off_policy.coef > 0 and self.off_policy.advantage != "one"

    @property
    def some_without_demonstration(self) -> bool:
        """Whether questions without a demonstration may be trained beside others with one, by RL on their rollouts."""
        if not (self.gate.needs_rollouts and self.gate.needs_demonstrations):
            return False
        return "rollouts" in (self.data.missing_demonstrations, self.data.wrong_demonstrations)

    @property
    def sampled(self) -> int:
        """Rollouts sampled per question: rollout.n, minus the place that the demonstration takes in the group."""
        return self.rollout.n - self.demonstration_in_group

    @property
    def eval_max_tokens(self) -> int:
        """The most tokens a response of an evaluation may have."""
        return self.eval.max_tokens or self.rollout.max_tokens

    @property
    def longest_response(self) -> int:
        """The most tokens that the rollout engine ever generates for one response."""
        return max(self.rollout.max_tokens, self.eval_max_tokens if self.eval.every else 0)

    @property
    def max_demonstration_tokens(self) -> int:
        """Longer demonstrations are handled as `data.too_long` says."""
        return self.data.max_demonstration_tokens or self.rollout.max_tokens

    def packs_rows(self, device_type: str) -> bool:
        """Whether rows are packed without padding on a device of this type ("cpu", "cuda")."""
        if self.batch.packing == "auto":
            return device_type == "cuda" and self.model.attention != "eager"
        return self.batch.packing == "packed"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
