"""Predicts the memory of a run from its recipe and its model's config, before anything is loaded.

Memory is counted at four moments of a step: the rollouts, the forward pass with the loss, the backward pass, and the
optimizer's update. Each column of the plan adds up; the run's peak is the largest. What the model's own code allocates
is traced on tensors without data (`hpt.memory.trace`), optimizer states are those of `hpt.optim.adamw` on such tensors,
and the loss is `hpt.memory.loss`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers.utils import is_flash_attn_2_available

from hpt.config.schema import Config
from hpt.config.stages import stages_of
from hpt.memory.hardware import GIB, Hardware, hardware_of
from hpt.memory.parts import MOMENTS, Part
from hpt.memory.rollout import rollout_parts
from hpt.memory.trace import EAGER, FLASH, MASKED
from hpt.memory.training import TrainedModel, training_parts

# Assumed where a recipe and its data do not say.
PROMPT_TOKENS = 1024
# Of a GPU, outside PyTorch's allocator: CUDA's context with cuBLAS, and kernels' code.
CONTEXT_BYTES = round(0.6 * GIB)
# Of what PyTorch allocates on a GPU: blocks rounded up and gaps between them.
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class Plan:
    """The parts of a run's memory, of each GPU and of one machine's CPU memory."""

    config: Config
    hardware: Hardware
    parameters: int  # of the model
    adapters: int  # parameters that model.lora adds
    parts: list[Part]
    tokens: int  # of a micro-batch
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what cannot work whatever the sums say

    def at(self, moment: str) -> int:
        return sum(getattr(part, moment) for part in self.parts)

    @property
    def rollout_peak(self) -> int:
        return self.at("rollout")

    @property
    def training_peak(self) -> int:
        return max(self.at(moment) for moment in MOMENTS[1:])

    @property
    def peak(self) -> int:
        return max(self.rollout_peak, self.training_peak)

    @property
    def host(self) -> int:
        return self.at("host")

    @property
    def fits(self) -> bool:
        """False only where the memory is known and is not enough."""
        hardware = self.hardware
        gpu = hardware.gpu_bytes is None or self.peak <= hardware.gpu_bytes
        in_host = self.host + (self.peak if hardware.gpu_bytes is None else 0)
        host = hardware.host_bytes is None or in_host <= hardware.host_bytes
        return gpu and host and not self.problems


def make_plan(config: Config, *, prompt_tokens: int | None = None) -> Plan:
    """The plan of a run; of one in stages, that of the stage that needs most.

    prompt_tokens: the longest prompt, where it is known; default: data.max_prompt_tokens, else `PROMPT_TOKENS`.
    Raises HptError where the model's config cannot be read.
    """
    plans = [_plan_stage(stage.config, prompt_tokens) for stage in stages_of(config)]
    return max(plans, key=lambda plan: (not plan.fits, plan.peak))


def _plan_stage(config: Config, prompt_tokens: int | None) -> Plan:
    hardware = hardware_of(config)
    prompt = prompt_tokens or config.data.max_prompt_tokens or PROMPT_TOKENS
    longest = prompt + max(config.rollout.max_tokens, config.max_demonstration_tokens)
    tokens = min(max(config.batch.tokens, longest), _tokens_of_update(config, longest))
    packed = config.packs_rows(hardware.device)
    attention = _attention(config, hardware, packed)
    rows = -(-tokens // longest) if attention == EAGER and not packed else 1
    model = TrainedModel.of(config.model, rows, -(-tokens // rows), attention)
    notes, problems = [f"architecture: {model.architecture.source}"], []
    parts = training_parts(config, hardware, model)
    if prompt_tokens is None and config.data.max_prompt_tokens is None:
        notes.append(f"prompts are taken to have at most {PROMPT_TOKENS} tokens; data.max_prompt_tokens says better")
    if config.gate.needs_rollouts or config.eval.every:
        found = rollout_parts(config, hardware, model, prompt)
        parts += found.parts
        notes += found.notes
        problems += found.problems
    if hardware.device == "cuda":
        # vLLM's share is kept to, gaps and all.
        own = [part for part in parts if not part.name.startswith("vLLM")]
        reserve = {moment: round(FRAGMENTATION * sum(getattr(part, moment) for part in own)) for moment in MOMENTS}
        parts += [
            Part(f"fragmentation (assumed, {FRAGMENTATION:.0%})", **reserve),
            Part.always("CUDA context (assumed)", CONTEXT_BYTES),
        ]
        if attention == FLASH and config.model.attention == "auto" and not is_flash_attn_2_available():
            notes.append("flash-attn is counted on; without it packed rows need a mask (model.attention=sdpa)")
        if hardware.host_bytes is None and any(part.host for part in parts):
            notes.append("CPU memory is not checked; hardware.host_memory_gib says how much there is")
        if config.engine == "local" and (config.hardware.gpus or 1) > 1:
            notes.append(f'hardware.gpus = {config.hardware.gpus}, of which engine "local" uses one')
    elif config.device != "cpu":
        notes.append("there is no GPU here; hardware.gpu_memory_gib plans for one")
    kept = [part for part in parts if any(getattr(part, moment) for moment in (*MOMENTS, "host"))]
    return Plan(config, hardware, model.weights.total, model.weights.adapters, kept, tokens, notes, problems)


def _tokens_of_update(config: Config, longest: int) -> int:
    questions = -(-config.batch.questions // config.batch.updates)
    return questions * (config.rollout.n + 1) * longest


def _attention(config: Config, hardware: Hardware, packed: bool) -> str:
    kind = config.model.attention
    if kind == "auto" and hardware.device == "cuda":
        kind = "sdpa" if torch.cuda.is_available() and not is_flash_attn_2_available() else "flash_attention_2"
    if kind == "eager":
        return EAGER
    return MASKED if kind in ("auto", "sdpa") and packed else FLASH
