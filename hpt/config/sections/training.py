"""Updates, processes, hardware, evaluations, checkpoints and stages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from hpt.config.sections.section import LearningRate, ResponseLength, Section
from hpt.support.cards import CardName
from hpt.support.upload import check_hub_name


class OptimizerConfig(Section):
    lr: LearningRate = Field(5e-6, description="learning rate of AdamW")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0, le=1000)
    clip_grad_norm: float = Field(1.0, gt=0, description="a gradient of larger norm is scaled down to this norm")
    skip_grad_norm: float | None = Field(
        None, gt=0, description="skip the update where the norm before clipping is larger"
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises linearly")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="after the warm-up: constant, or down to 0"
    )
    states: Literal["float32", "8bit"] = Field(
        "float32", description="AdamW's moments; 8bit: block-wise, by bitsandbytes"
    )
    offload: bool = Field(False, description="keep AdamW's states and master weights in CPU memory; engine local only")


class DeepSpeedConfig(Section):
    """Read by `engine: deepspeed` only."""

    stage: Literal[1, 2, 3] = Field(2, description="ZeRO: 1 shards optimizer states, 2 gradients too, 3 weights too")
    offload_optimizer: bool = Field(False, description="optimizer states and master weights in CPU memory")
    offload_parameters: bool = Field(False, description="weights in CPU memory; needs stage 3")
    timeout: float = Field(
        10.0,
        gt=0,
        le=10_000,
        description="minutes that a collective waits for the slowest process before the run fails",
    )
    options: dict[str, Any] = Field({}, description="further entries of DeepSpeed's own configuration")


class HardwareConfig(Section):
    """What `hpt plan` checks against; null: what this machine has. Without a GPU here or in the recipe, the CPU."""

    gpu: CardName | None = Field(
        None,
        description="the card, for the plan of time; null: this machine's, else a common one with gpu_memory_gib",
    )

    gpus: int | None = Field(None, ge=1, le=2**16, description="number of GPUs")
    gpu_memory_gib: float | None = Field(
        None, gt=0, le=1e6, description="memory of each GPU; null: that of the card in hardware.gpu"
    )
    host_memory_gib: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="CPU memory; null: not checked where the recipe describes another machine's GPUs",
    )
    check: bool = Field(True, description="hpt train refuses a run that does not fit; false: it tries")


class BatchConfig(Section):
    questions: int = Field(128, ge=1, le=2**20, description="questions per step")
    tokens: int = Field(
        16384, ge=1, le=2**31 - 1, description="most tokens of a micro-batch; a longer row is a micro-batch by itself"
    )
    packing: Literal["auto", "padded", "packed"] = Field("auto", description="auto: packed on a GPU, padded on a CPU")
    updates: int = Field(
        1, ge=1, le=2**16, description="optimizer updates per step, each on an equal part of the questions"
    )
    rows_per_update: int | None = Field(
        None,
        ge=1,
        description="fewer than batch.updates in a step that has too few rows: one for each so many, begun ones "
        "included; null: always batch.updates",
    )


class EvalConfig(Section):
    every: int = Field(
        0, ge=0, description="steps between evaluations, also before the first and after the last; 0: never"
    )
    n: int = Field(1, ge=1, le=2**16, description="responses per question; pass@k up to k = n")
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling, as rollout.top_p")
    max_tokens: ResponseLength | None = Field(None, description="default: rollout.max_tokens")


class CheckpointConfig(Section):
    every: int = Field(50, ge=0, description="steps between checkpoints; 0: only the last")
    keep: int = Field(2, ge=1, description="how many of the newest to keep")
    push_to_hub: Annotated[str, AfterValidator(check_hub_name)] | None = Field(
        None,
        description="NAME or OWNER/NAME on the Hugging Face hub: at the end of the run its last checkpoint is exported "
        "to RUN/export, with a model card, and pushed",
    )
    hub_private: bool = Field(False, description="make a new model on the hub private")


Tracker = Literal["tensorboard", "trackio", "wandb"]


class TrackConfig(Section):
    """Where a run is followed, beside its own records."""

    to: list[Tracker] = Field(
        [],
        description="get metrics, the recipe and sample rollouts; track=wandb and track=[wandb] are short for track.to",
    )
    every: int = Field(20, ge=0, description="steps between tables of sample rollouts; 0: none")
    project: str = Field("hpt", min_length=1, description="project in trackio and W&B")
    name: str | None = Field(None, min_length=1, description="of the run there; null: the name of its folder")

    @field_validator("to", mode="before")
    @classmethod
    def _take_one_name_for_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class StageConfig(Section):
    """A part of a run with its own method."""

    method: str
    steps: int | float | None = Field(
        None,
        gt=0,
        description="an integer counts steps, a float is a share of the run's; the last stage takes the rest",
    )
    settings: dict[str, Any] = Field({}, description="nested settings that win over the method's and the run's")
