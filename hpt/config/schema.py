"""The settings of a run as one typed object, each with its default and limits. `recipe` reads it from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from hpt.config.objectives import make_objective
from hpt.config.rules import broken_rules


def _is_function_reference(value: str) -> str:
    module, _, function = value.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not function.isidentifier():
        raise ValueError('should be "module:function", e.g. "my_package.rewards:score"')
    return value


FunctionReference = Annotated[str, AfterValidator(_is_function_reference)]
Coefficient = Annotated[float, Field(ge=0)]
Options = dict[str, float | bool | None]
Dtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _types_in(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and not kinds & {bool, Any} and kinds & {int, float}:
            raise ValueError("should be a number, not true or false")
        return value


def _types_in(annotation: Any) -> set[Any]:
    """A type and the members of a union or container."""
    return {annotation}.union(
        *(_types_in(part) for part in get_args(annotation) if get_origin(annotation) is not Literal)
    )


class LoraConfig(Section):
    """Low-rank adapters by peft; the model's own weights stay frozen."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0, description="the adapters' update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="all linear layers but the head, or names of modules"
    )


class ModelConfig(Section):
    path: str = Field(description="a Hugging Face folder or hub name")
    dtype: Dtype = Field(
        "float32", description="dtype of the weights; 16-bit weights have float32 masters in the optimizer"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model's folder")
    attention: Literal["auto", "sdpa", "flash_attention_2", "flex_attention", "eager"] = Field(
        "auto",
        description="auto: flash attention where it is installed and can run, else sdpa, with a mask for packed rows; "
        "flex_attention needs a GPU, but no such mask in memory",
    )
    gradient_checkpointing: bool | Literal["offload"] = Field(
        False, description="recompute activations in the backward pass; offload: and keep layer inputs in CPU memory"
    )
    liger: Literal["auto"] | bool = Field(
        "auto", description="Liger's norms, rotary embeddings and MLPs; auto: on a GPU where liger-kernel is installed"
    )
    lora: LoraConfig | None = Field(
        None, description="train low-rank adapters, e.g. {rank: 32}; null: train all weights"
    )
    quantization: Literal["nf4"] | None = Field(None, description="frozen weights in 4 bits (QLoRA); needs model.lora")


class ColumnsConfig(Section):
    """Names of the data's columns; dots reach into nested objects. Unset ones are found by known layouts."""

    id: str | None = None
    prompt: str | None = None
    answer: str | None = None
    demonstration: str | None = None
    grade: str | None = None


class DataConfig(Section):
    train: str = Field(
        description=".jsonl, .json, .csv or .parquet file, or a Hugging Face dataset NAME[:CONFIG]@SPLIT"
    )
    eval: str | None = Field(None, description="held-out questions, in the same forms")
    columns: ColumnsConfig = ColumnsConfig()
    max_prompt_tokens: int | None = Field(None, ge=1, description="longer prompts are dropped or refused, see too_long")
    max_demonstration_tokens: int | None = Field(None, ge=1, description="default: rollout.max_tokens")
    too_long: Literal["drop", "error"] = Field(
        "drop", description="nothing is truncated: long questions are dropped and counted, or an error"
    )


class PromptConfig(Section):
    style: Literal["chat", "plain"] = Field(
        "chat", description="chat: the tokenizer's chat template; plain: the text as it is"
    )
    system: str | None = Field(None, description="system message of a chat; null: the data's own")
    template: str = Field("{question}", description="text around the question; only {question} is replaced")

    @model_validator(mode="after")
    def _has_question(self) -> PromptConfig:
        if "{question}" not in self.template:
            raise ValueError(f"template must contain {{question}}, got {self.template!r}")
        return self


class VllmConfig(Section):
    """Read by `rollout.engine: vllm` only."""

    url: str | None = Field(
        None, description="URL of a server (python -m hpt.rollout.vllm_server); null: inside the trainer's process"
    )
    timeout: float = Field(300.0, gt=0, description="seconds without an answer after which a server counts as dead")
    tensor_parallel: int = Field(
        1,
        ge=1,
        description="GPUs that share one copy of the model; inside the trainer each is a rank of the launcher",
    )
    memory_share: float = Field(0.4, gt=0, lt=1, description="share of a GPU's memory for weights and KV cache")
    sleep_level: Literal[0, 1, 2] = Field(
        2,
        description="while the trainer trains: 0 stays in GPU memory, 1 moves the weights to CPU memory, 2 drops them",
    )
    adapters: Literal["merged", "lora"] = Field("merged", description="how the adapters of model.lora reach the engine")
    options: dict[str, Any] = Field({}, description="further arguments of vllm.LLM")


class RolloutConfig(Section):
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VllmConfig = VllmConfig()
    n: int = Field(8, ge=1, description="rollouts per question")
    temperature: float = Field(1.0, gt=0, description="of sampling, and of the log-probabilities that are trained")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="nucleus sampling: probability mass of the likeliest tokens that are kept; 1: all tokens",
    )
    max_tokens: int = Field(1024, ge=1, description="most tokens of a rollout, stop token included")
    batch_size: int = Field(
        64, ge=1, description="sequences generated at once by transformers; vLLM chooses for itself"
    )
    dynamic_rounds: int = Field(
        1,
        ge=1,
        description="dynamic sampling (DAPO): up to this many batches of questions per step, until batch.questions of "
        "them have rollouts of different scores; only those are trained on. 1: off",
    )


class VerifyConfig(Section):
    kind: Literal["math", "choice"] = Field(
        "math", description="math: compared by math-verify; choice: the letter of a multiple-choice answer"
    )
    function: FunctionReference | None = Field(
        None, description="(response, answer) -> score, instead of a built-in verifier"
    )
    workers: int = Field(2, ge=1, description="processes that verify at once")
    timeout: float = Field(5.0, gt=0, description="seconds per answer")
    memory_mb: int = Field(1024, ge=256, description="MiB per worker, beyond its libraries")
    boxed: bool = Field(False, description="math: a response without a \\boxed answer is unparsable")

    @property
    def name(self) -> str:
        """As in `hpt eval --verifier`: the function, "boxed" (math with `boxed`) or the kind."""
        if self.function:
            return self.function
        return "boxed" if self.boxed and self.kind == "math" else self.kind


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

    @property
    def needs_rollouts(self) -> bool:
        return self.kind != "sft"

    @property
    def needs_demonstrations(self) -> bool:
        return self.kind != "rl"


class OverlongConfig(Section):
    """Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13), added to the rewards but not to the scores."""

    max_tokens: int | None = Field(
        None, ge=1, description="length at which the penalty is full; default: rollout.max_tokens"
    )
    cache: int | float = Field(
        0.2,
        gt=0,
        description="tokens before that length over which the penalty grows; a float is a share of the length",
    )
    penalty: float = Field(1.0, gt=0, description="the full penalty")


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
    coef: float = Field(1.0, ge=0, description="weight of the RL half of the loss")


class CriticConfig(Section):
    """The value model of `rl.advantage: gae`; its optimizer is otherwise as in `optimizer`."""

    lr: float = Field(1e-5, gt=0, description="learning rate of the critic")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    clip: float | None = Field(0.2, gt=0, description="clip of a value around the one at sampling time; null: no clip")


class SFTConfig(Section):
    objective: str = Field("SFT", description="SFT or DFT, or module:function as in rl")
    options: Options = {}
    coef: float = Field(1.0, ge=0, description="weight of SFT on demonstrations in the loss")


class OffPolicyConfig(Section):
    objective: str = Field("LUFFY", description="LUFFY or SRFT, or module:function as in rl")
    options: Options = {}
    advantage: Literal["one", "mean", "mean_std"] = Field(
        "one",
        description="advantage of the demonstration. one: 1. mean, mean_std: it replaces one of the rollout.n "
        "rollouts, with score 1, in the group that advantages are computed over",
    )
    coef: float = Field(0.0, ge=0, description="weight of off-policy RL on demonstrations in the loss")


class LossConfig(Section):
    aggregation: Literal["sequence", "token", "constant", "official"] = Field(
        "sequence",
        description="sequence: mean over questions, rollouts, tokens. token: mean over tokens, of "
        "rollouts and off-policy rows together, and of SFT rows. "
        "constant: as sequence, with rollout.max_tokens instead of a rollout's length (Dr. GRPO). "
        "official: the published code's, which depends on the micro-batches",
    )
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    kl_coef: float = Field(
        0.0,
        ge=0,
        description="weight of the k3 estimate of the KL divergence from model.path on rollouts; above 0 every rollout "
        "reaches the model, those of advantage 0 too",
    )
    tis: Literal["none", "token", "sequence"] = Field(
        "none", description="truncated importance ratio pi_old / pi_engine of rollouts, per token or per sequence"
    )
    tis_mode: Literal["clip", "mask"] = Field(
        "clip", description="a ratio above tis_clip counts as tis_clip (clip) or as 0 (mask)"
    )
    tis_clip: float = Field(2.0, gt=1, description="largest ratio that is not truncated")
    entropy_weights: bool = Field(
        False,
        description="SRFT: SFT rows weighted by exp(-H) / 2, rollouts with a positive advantage by exp(H) / 10, "
        "with H the mean entropy of the row's tokens",
    )
    backend: Literal["auto", "torch", "triton", "reference"] = Field(
        "auto", description="backend of the fused loss; auto: triton on a GPU, else torch"
    )


class OptimizerConfig(Section):
    lr: float = Field(5e-6, gt=0, description="learning rate of AdamW")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
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
        10.0, gt=0, description="minutes that a collective waits for the slowest process before the run fails"
    )
    options: dict[str, Any] = Field({}, description="further entries of DeepSpeed's own configuration")


class HardwareConfig(Section):
    """What `hpt plan` checks against; null: what this machine has. Without a GPU here or in the recipe, the CPU."""

    gpus: int | None = Field(None, ge=1, description="number of GPUs")
    gpu_memory_gib: float | None = Field(None, gt=0, description="memory of each GPU")
    host_memory_gib: float | None = Field(
        None, gt=0, description="CPU memory; null: not checked where the recipe describes another machine's GPUs"
    )
    check: bool = Field(True, description="hpt train refuses a run that does not fit; false: it tries")


class BatchConfig(Section):
    questions: int = Field(128, ge=1, description="questions per step")
    tokens: int = Field(
        16384, ge=1, description="most tokens of a micro-batch; a longer row is a micro-batch by itself"
    )
    packing: Literal["auto", "padded", "packed"] = Field("auto", description="auto: packed on a GPU, padded on a CPU")
    updates: int = Field(1, ge=1, description="optimizer updates per step, each on an equal part of the questions")


class EvalConfig(Section):
    every: int = Field(
        0, ge=0, description="steps between evaluations, also before the first and after the last; 0: never"
    )
    n: int = Field(1, ge=1, description="responses per question; pass@k up to k = n")
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling, as rollout.top_p")
    max_tokens: int | None = Field(None, ge=1, description="default: rollout.max_tokens")


class CheckpointConfig(Section):
    every: int = Field(50, ge=0, description="steps between checkpoints; 0: only the last")
    keep: int = Field(2, ge=1, description="how many of the newest to keep")


class StageConfig(Section):
    """A part of a run with its own method."""

    method: str
    steps: int | float | None = Field(
        None,
        gt=0,
        description="an integer counts steps, a float is a share of the run's; the last stage takes the rest",
    )
    settings: dict[str, Any] = Field({}, description="nested settings that win over the method's and the run's")


class Config(Section):
    output: str = Field(description="the run's folder")
    steps: int = Field(ge=1, description="training steps, each on batch.questions questions")
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
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default: torch chooses")
    engine: Literal["local", "deepspeed"] = Field("local", description="local: one process; deepspeed: ZeRO, several")
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    hardware: HardwareConfig = HardwareConfig()
    model: ModelConfig
    data: DataConfig
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    verify: VerifyConfig = VerifyConfig()
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
    track: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [], description="trackers that metrics are also sent to"
    )

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Config:
        if problems := list(broken_rules(self)):
            raise ValueError("\n  ".join(problems))
        for signal, section in (("rl", self.rl), ("sft", self.sft), ("off_policy", self.off_policy)):
            make_objective(signal, section.objective, section.options)
        return self

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
