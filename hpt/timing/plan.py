"""Predicts how long a run's steps take, phase by phase, from its recipe and its memory plan.

What is computed and moved is counted (`generation`, `training`, `transfer`), and divided by the rates of the machine
(`machine`, `cpu`). What nobody knows beforehand is assumed and said: how long responses are, and how many questions
have signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpt.config.schema import Config
from hpt.memory.hardware import GIB, Hardware
from hpt.memory.plan import PROMPT_TOKENS, MemoryPlan
from hpt.memory.rollout import VLLM_CACHE, VLLM_WEIGHTS
from hpt.memory.trace import MASKED
from hpt.timing import machine as assumed
from hpt.timing.cpu import cpu_machine
from hpt.timing.generation import Decoder, continuously, in_batches, kv_passes_of_generate, slots_of
from hpt.timing.lengths import share_at_limit, spread_lengths
from hpt.timing.machine import Machine, gpu_machine
from hpt.timing.shape import ModelShape
from hpt.timing.training import Trainer, micro_batch_counts, row_of
from hpt.timing.transfer import sync_seconds

# Mean lengths, as a share of the longest.
RESPONSE_SHARE, PROMPT_SHARE = 1 / 4, 1 / 4
# Seconds to verify a response; and the share of responses with which math-verify reaches verify.timeout.
VERIFY_SECONDS, TIMEOUT_SHARE = 0.005, 0.01
# Questions of an evaluation where they cannot be counted: as many as MATH-500 has.
EVAL_QUESTIONS = 500
# Batches of questions per step with dynamic sampling: half of the questions are taken to have mixed outcomes.
DYNAMIC_BATCHES = 2
PHASES = ("rollout", "verify", "train", "weight sync", "evaluation")
DAY = 86400.0


@dataclass(frozen=True)
class Workload:
    """Mean tokens of prompts and of responses; limit: the most that a response may have."""

    prompt: float
    response: float
    limit: int

    @classmethod
    def of(cls, config: Config, response_tokens: int | None = None) -> Workload:
        """response_tokens: the mean, if known."""
        limit = config.rollout.max_tokens
        prompt = PROMPT_SHARE * (config.data.max_prompt_tokens or PROMPT_TOKENS)
        return cls(prompt, response_tokens or RESPONSE_SHARE * limit, limit)

    def lengths(self, count: int, limit: int | None = None) -> list[int]:
        """Lengths of `count` responses under `limit`."""
        limit = limit or self.limit
        return spread_lengths(count, min(self.response, limit), limit)


@dataclass(frozen=True)
class StepTime:
    """The predicted time of one step of a run, or of one of its stages.

    phases: seconds, by `PHASES`; evaluation is its share of a step. generated, trained: tokens of all GPUs.
    """

    config: Config
    machine: Machine
    workload: Workload
    phases: dict[str, float]
    generated: int
    trained: int
    slots: int  # responses generated at once by each engine

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    @property
    def steps_per_day(self) -> float:
        return DAY / self.seconds

    @property
    def generated_per_second(self) -> float:
        """While the step generates."""
        return self.generated / self.phases["rollout"] if self.generated else 0.0

    @property
    def trained_per_second(self) -> float:
        """While the step trains."""
        return self.trained / self.phases["train"] if self.trained else 0.0


@dataclass(frozen=True)
class TimePlan:
    """The predicted time of a run: of a step of each stage (one, where the recipe has no stages), and of all."""

    stages: list[StepTime]
    assumptions: list[str]

    @property
    def seconds(self) -> float:
        """Of the run."""
        return sum(stage.config.steps * stage.seconds for stage in self.stages)

    @property
    def days(self) -> float:
        return self.seconds / DAY


def make_time_plan(plans: Sequence[MemoryPlan], *, response_tokens: int | None = None) -> TimePlan:
    """The time of a run whose stages have these memory plans.

    response_tokens: the mean length of responses; default: `RESPONSE_SHARE` of rollout.max_tokens.
    """
    stages = [step_time(plan, Workload.of(plan.config, response_tokens)) for plan in plans]
    return TimePlan(stages, _assumptions(stages[0], plans[0].hardware))


def step_time(plan: MemoryPlan, workload: Workload) -> StepTime:
    """The time of a step of a run without stages."""
    config, hardware = plan.config, plan.hardware
    shape = ModelShape.of(plan.model, quantized=config.model.quantization is not None)
    machine = gpu_machine(config, hardware) if hardware.card else cpu_machine(config, shape)
    generation = _Generation.of(plan, shape, machine)
    phases = dict.fromkeys(PHASES, 0.0)
    generated: list[int] = []
    if config.gate.needs_rollouts:
        batches = min(config.rollout.dynamic_rounds, DYNAMIC_BATCHES)
        questions = -(-config.batch.questions * batches // generation.engines)
        generated = workload.lengths(questions * config.sampled)
        phases["rollout"] = generation.seconds(generated, questions, workload.prompt)
        phases["verify"] = _verify_seconds(config, len(generated) * generation.engines, machine.gpus, phases["rollout"])
    weights = plan.named(VLLM_WEIGHTS)
    phases["weight sync"] = sync_seconds(config, shape, machine, weights.rollout if weights else 0)
    trained, phases["train"] = _train_seconds(plan, Trainer(config, shape, machine), workload)
    if config.eval.every:
        per_engine = -(-(held_out_questions(config) or EVAL_QUESTIONS) // generation.engines)
        lengths = workload.lengths(per_engine * config.eval.n, config.eval_max_tokens)
        evaluations = 1 + -(-config.steps // config.eval.every)
        phases["evaluation"] = generation.seconds(lengths, per_engine, workload.prompt) * evaluations / config.steps
    return StepTime(
        config,
        machine,
        workload,
        phases,
        generated=sum(generated) * generation.engines,
        trained=trained,
        slots=generation.slots(generated, workload.prompt) if generated else 0,
    )


@dataclass(frozen=True)
class _Generation:
    """The rollout engine of a run: how many copies generate side by side, and each of them."""

    config: Config
    decoder: Decoder
    engines: int
    room: float  # tokens that the KV cache of a copy holds
    most: int  # sequences that a copy runs at once

    @classmethod
    def of(cls, plan: MemoryPlan, shape: ModelShape, machine: Machine) -> _Generation:
        config, settings = plan.config, plan.config.rollout.vllm
        adapters = config.model.lora is not None
        if config.rollout.engine == "transformers":
            passes = kv_passes_of_generate(shape)
            masked = plan.hardware.card is None or plan.attention == MASKED
            joint = config.rollout.batching == "continuous" and masked
            decoder = Decoder(shape, machine, shape.quantized, adapters, kv_passes=passes, joint=joint)
            return cls(config, decoder, machine.gpus, float("inf"), config.rollout.batch_size)
        weights, cache = plan.named(VLLM_WEIGHTS), plan.named(VLLM_CACHE)
        split = settings.tensor_parallel
        in_16_bits = (shape.body + shape.head) * shape.itemsize
        decoder = Decoder(
            shape,
            machine,
            quantized=weights is not None and weights.rollout * split < 0.8 * in_16_bits,
            adapters=adapters and settings.adapters == "lora",
            gpus=split,
        )
        room = cache.rollout * split / shape.kv_bytes if cache else float("inf")
        engines = 1 if settings.url is not None else max(1, machine.gpus // split)
        return cls(config, decoder, engines, room, _most_sequences(config, plan.hardware))

    def slots(self, lengths: Sequence[int], prompt: float) -> int:
        return slots_of(lengths, prompt, self.most, self.room)

    def seconds(self, lengths: Sequence[int], questions: int, prompt: float) -> float:
        """Of responses of `lengths` tokens to `questions` prompts by one copy."""
        if self.config.rollout.engine == "transformers":
            if self.config.rollout.batching == "continuous":
                seconds = self.decoder.machine.generation_start + self.decoder.prefill(len(lengths) * prompt)
                seconds += continuously(lengths, prompt, self.most, self.decoder)
            else:
                seconds = in_batches(lengths, prompt, self.most, self.decoder)
            if self.config.engine == "deepspeed" and self.config.deepspeed.stage == 3:
                seconds += self.decoder.shape.weight_bytes / self.decoder.machine.link
            return seconds
        # Prefix caching: the prompt of a question is read once for all of its responses.
        seconds = self.decoder.prefill(questions * prompt)
        return seconds + continuously(lengths, prompt, self.slots(lengths, prompt), self.decoder)


def _most_sequences(config: Config, hardware: Hardware) -> int:
    """vLLM's max_num_seqs: as set, else its default (0.32): 1,024 on GPUs from 70 GiB but the A100, 256 elsewhere."""
    chosen = config.rollout.vllm.options.get("max_num_seqs")
    if chosen:
        return int(chosen)
    large = (hardware.gpu_bytes or 0) >= 70 * GIB and hardware.card != "A100-80"
    return 1024 if large else 256


def _verify_seconds(config: Config, responses: int, gpus: int, rollout: float) -> float:
    """What of the verification is left when the rollouts are finished: they are verified while others are generated."""
    each = VERIFY_SECONDS
    if config.verify.name in ("math", "boxed"):
        each += TIMEOUT_SHARE * config.verify.timeout
    whole = responses / gpus * each / config.verify.workers
    return max(VERIFY_SECONDS, whole - rollout)


def held_out_questions(config: Config) -> int | None:
    """The lines of data.eval, all sources together; None where one of them is not a JSONL file that exists here."""
    files = [Path(source.path).expanduser() for source in config.data.eval_sources]
    if not files or not all(file.suffix == ".jsonl" and file.is_file() for file in files):
        return None
    return sum(_lines(file) for file in files)


def _lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _train_seconds(plan: MemoryPlan, trainer: Trainer, workload: Workload) -> tuple[int, float]:
    """(tokens of all rows, seconds). Every question has signal; rows of an update are those of its questions."""
    config, machine = plan.config, trainer.machine
    packed = config.packs_rows(plan.hardware.device)
    questions = config.batch.questions // config.batch.updates
    prompt = round(workload.prompt)
    rollouts = config.rollout.probe or config.sampled  # a probed question trains on its first ones
    lengths = workload.lengths(questions * rollouts) if config.gate.needs_rollouts else []
    if config.gate.kind != "switch" and config.gate.needs_demonstrations:
        lengths += workload.lengths(questions, config.max_demonstration_tokens)
    rows = [row_of(prompt, length) for length in lengths]
    batches = micro_batch_counts(rows, config, gpus=machine.gpus, packed=packed, attention=plan.attention)
    seconds = sum(map(trainer.micro_batch, batches)) + trainer.update()
    forwards = _forward_passes(config)
    seconds += forwards * sum(map(trainer.forward, batches))
    if config.rl.advantage == "gae":  # the critic is a model of the same size, trained on the same rows
        seconds += sum(map(trainer.micro_batch, batches)) + trainer.update() + sum(map(trainer.forward, batches))
    tokens = sum(len(row.tokens) for row in rows)
    return tokens * config.batch.updates, seconds * config.batch.updates


def _forward_passes(config: Config) -> int:
    """Passes over all rows that only give log-probabilities or entropies."""
    loss = config.loss
    old = loss.tis != "none" or (config.batch.updates > 1 and config.rl.objective != "REINFORCE")
    return old + (loss.kl_coef > 0) + loss.entropy_weights


def _assumptions(step: StepTime, hardware: Hardware) -> list[str]:
    """What the plan of time rests on, one sentence each."""
    config, workload = step.config, step.workload
    lines = []
    if config.gate.needs_rollouts:
        reached = share_at_limit(workload.response, workload.limit)
        lines.append(
            f"responses of {workload.response:,.0f} tokens on average (--response-tokens), spread exponentially: "
            f"{reached:.0%} reach the limit of {workload.limit:,}; prompts of {workload.prompt:,.0f}"
        )
        lines.append(
            "every question has signal, so its rollouts are trained on; groups without signal and questions that are "
            "learnt from a demonstration make a step shorter"
        )
        if config.rollout.probe is not None:
            lines.append(
                f"rollout.probe: every question goes on to all {config.rollout.n} rollouts and trains on the first "
                f"{config.rollout.probe}; those that stop make a step shorter"
            )
    if hardware.card:
        training = assumed.ADAPTER_SHARE if config.model.lora else assumed.TRAINING_SHARE
        card = (
            f"{hardware.card} (assumed from its memory; hardware.gpu=NAME)" if hardware.card_assumed else hardware.card
        )
        lines.append(
            f"{card}: {training:.0%} of its FLOP/s in training and {assumed.DECODING_SHARE:.0%} in generation, "
            f"{assumed.BANDWIDTH_SHARE:.0%} of its memory's bandwidth, {assumed.LINK_SHARE:.0%} of its links'"
        )
        lines.append(
            f"each layer delays a decoding step by {1e3 * step.machine.decoding_layer:.2g} ms and a micro-batch by "
            f"{1e3 * step.machine.training_layer:.2g} ms"
        )
    else:
        lines.append(
            f"{step.machine.name}, measured just now: {step.machine.training_flops / 1e9:.0f} GFLOP/s in training, "
            f"{step.machine.decoding_flops / 1e9:.0f} in generation, {step.machine.bandwidth / 1e9:.0f} GB/s"
        )
    if config.rollout.batching == "continuous" and hardware.card:
        lines.append("the overhead of continuous batching on a GPU is not known: that of `generate` is taken")
    if config.gate.needs_rollouts:
        lines.append(
            f"{1e3 * VERIFY_SECONDS:.0f} ms to verify a response, while others are generated; in mathematics "
            f"{TIMEOUT_SHARE:.0%} reach verify.timeout"
        )
    if config.eval.every:
        counted = held_out_questions(config)
        lines.append(
            f"{counted:,} questions in an evaluation, the lines of data.eval"
            if counted
            else f"{EVAL_QUESTIONS} questions in an evaluation (data.eval is not a JSONL file here, and not counted)"
        )
    if config.rollout.engine == "vllm" and config.rollout.vllm.url is not None:
        lines.append("the server has one GPU of the same kind, and room for all sequences")
    return lines
