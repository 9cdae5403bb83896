"""Predicts the memory of a run from its recipe and its model's config, before anything is loaded.

Memory is counted in four phases of a step: the rollouts, the forward pass with the loss, the backward pass, and the
optimizer's update. The components of a phase add up, and the run's peak is the largest sum. What the model's own code
allocates is traced on the meta device (`hpt.memory.trace`), optimizer states are those that `hpt.optim.adamw` makes
there, and the loss is counted by `upge.memory_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpt.config.schema import Config
from hpt.config.stages import stages_of
from hpt.memory.components import PHASES, Component
from hpt.memory.hardware import GIB, Hardware, hardware_of
from hpt.memory.rollout import rollout_memory
from hpt.memory.trace import EAGER, FLASH, MASKED
from hpt.memory.training import TrainedModel, training_components
from hpt.model.attention import has_flash_attention
from hpt.model.positions import exceeded_positions

# The longest prompt, if neither the recipe nor the data says.
PROMPT_TOKENS = 1024
# GPU memory outside PyTorch's allocator: CUDA's context with cuBLAS, and the kernels' code.
CONTEXT_BYTES = round(0.6 * GIB)
# Share of what PyTorch allocates on a GPU: blocks are rounded up, and there are gaps between them.
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class MemoryPlan:
    """The predicted memory of a run, component by component: on each GPU, and in the machine's CPU memory.

    Without a GPU (`hardware.gpu_bytes` None) the phases too are in CPU memory.
    """

    config: Config
    hardware: Hardware
    parameters: int  # of the model, adapters not counted
    adapters: int  # parameters of the adapters
    components: list[Component]
    tokens: int  # per micro-batch
    model: TrainedModel
    attention: str  # a stand-in of `hpt.memory.trace`
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # reasons why the run cannot work, however much memory there is

    def total(self, phase: str) -> int:
        """Bytes of all components in a phase of `PHASES`, or in "host" memory."""
        return sum(getattr(component, phase) for component in self.components)

    def named(self, name: str) -> Component | None:
        """The component of that name, if the plan has it."""
        return next((component for component in self.components if component.name == name), None)

    @property
    def rollout_peak(self) -> int:
        return self.total("rollout")

    @property
    def training_peak(self) -> int:
        return max(self.total(phase) for phase in PHASES if phase != "rollout")

    @property
    def peak(self) -> int:
        return max(self.rollout_peak, self.training_peak)

    @property
    def host(self) -> int:
        return self.total("host")

    @property
    def fits(self) -> bool:
        """False if there is a problem, or if the memory is known and does not suffice."""
        hardware = self.hardware
        gpu_fits = hardware.gpu_bytes is None or self.peak <= hardware.gpu_bytes
        in_host = self.host + (self.peak if hardware.gpu_bytes is None else 0)
        host_fits = hardware.host_bytes is None or in_host <= hardware.host_bytes
        return gpu_fits and host_fits and not self.problems


def make_plan(config: Config, *, prompt_tokens: int | None = None) -> MemoryPlan:
    """The memory plan of a run; for a run in stages, that of the stage that needs most.

    prompt_tokens: the longest prompt, if known; default: data.max_prompt_tokens, else `PROMPT_TOKENS`.
    Raises HptError if the model's config cannot be read.
    """
    return largest(plan_stages(config, prompt_tokens=prompt_tokens))


def plan_stages(config: Config, *, prompt_tokens: int | None = None) -> list[MemoryPlan]:
    """The memory plan of each stage of a run; one where it has no stages. As `make_plan`."""
    return [_plan_stage(stage.config, prompt_tokens) for stage in stages_of(config)]


def largest(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    """The plan of the stage that needs most."""
    return max(plans, key=lambda plan: (not plan.fits, plan.peak))


def _plan_stage(config: Config, prompt_tokens: int | None) -> MemoryPlan:
    hardware = hardware_of(config)
    prompt = prompt_tokens or config.data.max_prompt_tokens or PROMPT_TOKENS
    longest = prompt + max(config.rollout.max_tokens, config.max_demonstration_tokens)
    tokens = min(max(config.batch.tokens, longest), _tokens_of_update(config, longest))
    packed = config.packs_rows(hardware.device)
    attention = attention_of(config, hardware, packed)
    rows = -(-tokens // longest) if attention == EAGER and not packed else 1
    model = TrainedModel.of(config.model, rows, -(-tokens // rows), attention)
    notes, problems = [f"architecture: {model.architecture.source}"], []
    notes += exceeded_positions(model.architecture.config, {"the longest prompt and response": longest})
    components = training_components(config, hardware, model)
    if prompt_tokens is None and config.data.max_prompt_tokens is None:
        notes.append(f"prompts are assumed to have at most {PROMPT_TOKENS} tokens; set data.max_prompt_tokens")
    if config.gate.needs_rollouts or config.eval.every:
        rollout = rollout_memory(config, hardware, model, prompt)
        components += rollout.components
        notes += rollout.notes
        problems += rollout.problems
    if hardware.device == "cuda":
        components += _gpu_overheads(components)
    notes += _hardware_notes(config, hardware, components, attention)
    used = [component for component in components if any(getattr(component, place) for place in (*PHASES, "host"))]
    counts = model.memory.count, model.memory.adapter_count
    return MemoryPlan(config, hardware, *counts, used, tokens, model, attention, notes, problems)


def _gpu_overheads(components: list[Component]) -> list[Component]:
    gaps: dict[str, Any] = {}
    for phase in PHASES:
        allocated = sum(getattr(component, phase) for component in components if not component.preallocated)
        gaps[phase] = round(FRAGMENTATION * allocated)
    return [
        Component(f"fragmentation (assumed, {FRAGMENTATION:.0%})", **gaps),
        Component.in_every_phase("CUDA context (assumed)", CONTEXT_BYTES),
    ]


def _hardware_notes(config: Config, hardware: Hardware, components: list[Component], attention: str) -> list[str]:
    """What the plan assumes about the hardware, and what it does not check."""
    if hardware.device != "cuda":
        return [] if config.device == "cpu" else ["there is no GPU here; to plan for one: hardware.gpu_memory_gib"]
    notes = []
    if attention == MASKED and config.model.attention == "auto":
        notes.append(
            "flash attention is not installed here, so packed rows are counted with a mask; to count on it: "
            "model.attention=flash_attention_2"
        )
    if hardware.host_bytes is None and any(component.host for component in components):
        notes.append("CPU memory is not checked, since its size is not known; set hardware.host_memory_gib")
    if config.engine == "local" and (config.hardware.gpus or 1) > 1:
        notes.append(f'hardware.gpus = {config.hardware.gpus}, of which engine "local" uses one')
    return notes


def _tokens_of_update(config: Config, longest: int) -> int:
    questions = -(-config.batch.questions // config.batch.updates)
    return questions * (config.rollout.n + 1) * longest


def attention_of(config: Config, hardware: Hardware, packed: bool) -> str:
    """The stand-in of `hpt.memory.trace` for the attention that training has."""
    kind = config.model.attention
    if kind == "auto":
        has_flash = hardware.device == "cuda" and config.model.dtype != "float32" and has_flash_attention()
        kind = "flash_attention_2" if has_flash else "sdpa"
    if kind == "eager":
        return EAGER
    return MASKED if kind == "sdpa" and packed else FLASH
