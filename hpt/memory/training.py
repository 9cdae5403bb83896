"""The training side of a memory plan: weights, optimizer, activations and loss, in one process or with ZeRO."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import upge
from transformers import PreTrainedModel

from hpt.config.schema import Config
from hpt.config.sections.model import ModelConfig
from hpt.config.sections.training import OptimizerConfig
from hpt.memory.allocations import AllocationTracker
from hpt.memory.components import PHASES, Component
from hpt.memory.hardware import Hardware
from hpt.memory.meta_model import (
    Architecture,
    ParameterMemory,
    build_meta_model,
    measure_parameters,
    read_architecture,
)
from hpt.memory.trace import TrainingTrace, trace_training
from hpt.optim.adamw import SLICE, stored_tensors
from hpt.optim.local import make_adamw
from hpt.support.optional_packages import require

# DeepSpeed's defaults: elements of a gradient bucket, and parameters that stage 3 holds unsharded at once.
BUCKET, LIVE_PARAMETERS = 500_000_000, 1_000_000_000
TRACED_LAYERS = 4


@dataclass(frozen=True)
class TrainedModel:
    """A model on the meta device, and the trace of a micro-batch of `tokens` tokens on it."""

    architecture: Architecture
    model: PreTrainedModel
    memory: ParameterMemory
    trace: TrainingTrace
    tokens: int

    @classmethod
    def of(cls, settings: ModelConfig, rows: int, width: int, attention: str) -> TrainedModel:
        """The model of a recipe, traced on `rows` rows of `width` tokens. attention: a name of `hpt.memory.trace`."""
        return _traced(settings.model_dump_json(), rows, width, attention)

    @property
    def layers(self) -> int:
        return self.architecture.config.get_text_config().num_hidden_layers

    @property
    def hidden_bytes(self) -> int:
        """Bytes of the hidden states of all tokens, which are the input of one layer."""
        return self.tokens * self.architecture.config.get_text_config().hidden_size * self.model.dtype.itemsize


@lru_cache(maxsize=32)
def _traced(settings_json: str, rows: int, width: int, attention: str) -> TrainedModel:
    settings = ModelConfig.model_validate_json(settings_json)
    architecture = read_architecture(settings)
    model = build_meta_model(architecture, settings, attention)
    layers = architecture.config.get_text_config().num_hidden_layers
    if layers <= TRACED_LAYERS:
        trace = trace_training(model, rows, width)
    else:
        # All layers are alike: two short models show what one more layer saves; the rest of the peaks stays as it is.
        fewer, more = (
            trace_training(build_meta_model(architecture.with_layers(count), settings, attention), rows, width)
            for count in (TRACED_LAYERS - 1, TRACED_LAYERS)
        )
        trace = more.with_saved((layers - TRACED_LAYERS) * (more.saved - fewer.saved))
    return TrainedModel(architecture, model, measure_parameters(model, settings), trace, rows * width)


def training_components(config: Config, hardware: Hardware, trained: TrainedModel) -> list[Component]:
    """What training takes, the rollouts' own memory aside."""
    if config.engine == "deepspeed":
        components = zero_components(config, hardware.gpus, trained)
    else:
        components = local_components(config, trained)
    components += _other_models(config, trained)
    trace = trained.trace
    saved, saved_in_host = trace.saved, 0
    if config.model.gradient_checkpointing == "offload":
        # Of the layers' inputs, only one is on the GPU at a time.
        saved_in_host = trained.hidden_bytes * (trained.layers - 1)
        saved -= saved_in_host
    head = trained.model.get_output_embeddings().weight
    loss = upge.memory_bytes(
        trained.tokens,
        width=head.shape[1],
        vocabulary=head.shape[0],
        dtype=head.dtype,
        device=hardware.device,
        trains_weight=head.requires_grad,
    )
    working = trace.backward - trace.saved + trained.memory.dequantized_bytes
    return [
        *components,
        Component("activations saved for the backward pass", loss=saved, backward=saved, host=saved_in_host),
        Component("loss: chunk of logits, gradient sums", loss=max(loss, trace.forward - trace.saved)),
        Component("working memory of a layer", backward=working),
    ]


def local_components(config: Config, trained: TrainedModel) -> list[Component]:
    """One process (`hpt.optim.local`): weights, gradients in their dtype, and the states of `hpt.optim.adamw`."""
    memory, settings = trained.memory, config.optimizer
    if settings.states == "8bit":
        require("bitsandbytes", 'optimizer.states "8bit"', "'hpt[peft]'")
    on_device = settings.model_copy(update={"offload": False})  # the states to count must stay on the meta device
    optimizer = make_adamw(memory.trained, on_device)
    kept = [stored_tensors(optimizer.state[parameter]) for parameter in memory.trained]
    masters = sum(t.nbytes for tensors in kept for name, t in tensors.items() if name in ("remainder", "master"))
    moments = sum(t.nbytes for tensors in kept for t in tensors.values()) - masters
    largest = max(range(len(kept)), key=lambda index: memory.trained[index].numel())
    working = _update_bytes(memory.trained[largest], on_device)
    if settings.offload:
        held = [Component("master weights", host=masters), Component("optimizer states", host=moments)]
        working += sum(tensor[:SLICE].nbytes for tensor in kept[largest].values())
    else:
        held = [
            Component.in_every_phase("master weights", masters),
            Component.in_every_phase("optimizer states", moments),
        ]
    return [
        Component.in_every_phase("weights", memory.weight_bytes),
        *held,
        Component.in_training("gradients", memory.gradient_bytes),
        Component("working memory of the update", update=working),
    ]


def zero_components(config: Config, ranks: int, trained: TrainedModel) -> list[Component]:
    """ZeRO (arXiv 1910.02054, figure 1) over `ranks` GPUs, with the buffers of DeepSpeed's defaults.

    For Psi trained parameters in 16 bits: weights 2 Psi, gradients 2 Psi, float32 masters 4 Psi and moments 8 Psi
    bytes. Stage 1 shards the last two over the ranks, stage 2 gradients too, stage 3 weights too. The update casts a
    rank's shard of the gradients to float32. CPU memory is that of all ranks together.
    """
    memory, settings = trained.memory, config.deepspeed
    count, size = memory.trained_count, trained.model.dtype.itemsize
    shard = -(-count // ranks)
    masters, moments = (4 * shard if size < 4 else 0), 8 * shard
    gradients = size * (count if settings.stage == 1 else shard)
    update_gradients = 4 * shard if size < 4 else 0
    bucket = size * min(count, BUCKET)
    if settings.stage < 3:
        components = [
            Component.in_every_phase("weights", memory.weight_bytes),
            Component("weights gathered after the update", update=bucket),
        ]
    else:
        resident = -(-memory.weight_bytes // ranks)
        offloaded = settings.offload_parameters
        live = min(memory.weight_bytes, size * LIVE_PARAMETERS)
        gathered = memory.weight_bytes - (0 if offloaded else resident)  # to generate, every rank has the whole model
        components = [
            Component("weights", host=resident * ranks) if offloaded else Component.in_every_phase("weights", resident),
            Component("weights gathered from other ranks", rollout=gathered, loss=live, backward=live),
        ]
    if settings.offload_optimizer:
        # Until the update, the gradients are in CPU memory in float32, beside masters and moments.
        components += [
            Component("master weights", host=masters * ranks),
            Component("optimizer states", host=moments * ranks),
            Component("gradients", host=4 * shard * ranks),
        ]
    else:
        components += [
            Component.in_every_phase("master weights", masters),
            Component.in_every_phase("optimizer states", moments),
            Component.in_training("gradients", gradients),
            Component("working memory of the update", update=update_gradients),
        ]
    return [*components, Component("gradient buckets sent to other ranks", backward=bucket)]


def _other_models(config: Config, trained: TrainedModel) -> list[Component]:
    """A critic with its own weights and optimizer, and the reference model of the KL penalty."""
    components = []
    if config.rl.advantage == "gae":
        own = local_components(config, trained)
        total: dict[str, Any] = {
            place: sum(getattr(component, place) for component in own) for place in (*PHASES, "host")
        }
        components.append(Component("critic: weights and optimizer", **total))
    if config.loss.kl_coef and not config.model.lora:  # with adapters, the reference model is the model without them
        components.append(Component.in_every_phase("reference model of the KL penalty", trained.memory.weight_bytes))
    return components


def _update_bytes(parameter: torch.nn.Parameter, settings: OptimizerConfig) -> int:
    """What the update of one parameter takes beside weight, gradient and states."""
    parameter.grad = torch.empty_like(parameter)
    optimizer = make_adamw([parameter], settings)
    with AllocationTracker("meta") as live:
        live.add([parameter, parameter.grad, *stored_tensors(optimizer.state[parameter]).values()])
        base = live.current
        optimizer.step()
        return live.peak - base
