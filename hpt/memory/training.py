"""The training side of a plan: weights, optimizer, activations and loss, of one process or under ZeRO."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedModel

from hpt.config.schema import Config, ModelConfig, OptimizerConfig
from hpt.memory.hardware import Hardware
from hpt.memory.live import LiveBytes
from hpt.memory.loss import loss_bytes
from hpt.memory.parts import MOMENTS, Part
from hpt.memory.skeleton import Architecture, Weights, build_skeleton, read_architecture, weigh
from hpt.memory.trace import TrainingTrace, trace_training
from hpt.optim.adamw import SLICE, AdamW
from hpt.support.optional_packages import require

# DeepSpeed's defaults: elements of a bucket of gradients, and parameters that stage 3 holds whole at once.
BUCKET, LIVE_PARAMETERS = 500_000_000, 1_000_000_000
TRACED_LAYERS = 4


@dataclass(frozen=True)
class TrainedModel:
    """A model on the meta device, and what a micro-batch of `tokens` tokens does there."""

    architecture: Architecture
    model: PreTrainedModel
    weights: Weights
    trace: TrainingTrace
    tokens: int

    @classmethod
    def of(cls, settings: ModelConfig, rows: int, width: int, attention: str) -> TrainedModel:
        return _traced(settings.model_dump_json(), rows, width, attention)

    @property
    def hidden_bytes(self) -> int:
        """Of the hidden states of every token, the input of one layer."""
        return self.tokens * self.architecture.config.get_text_config().hidden_size * self.model.dtype.itemsize


@lru_cache(maxsize=32)
def _traced(settings_json: str, rows: int, width: int, attention: str) -> TrainedModel:
    settings = ModelConfig.model_validate_json(settings_json)
    architecture = read_architecture(settings)
    model = build_skeleton(architecture, settings, attention)
    layers = architecture.config.get_text_config().num_hidden_layers
    if layers <= TRACED_LAYERS:
        trace = trace_training(model, (rows, width), rows * width)
    else:
        # Layers are alike: a short model says what one more adds, and the rest of the peaks stays as it is.
        fewer, more = (
            trace_training(
                build_skeleton(architecture.shortened(count), settings, attention), (rows, width), rows * width
            )
            for count in (TRACED_LAYERS - 1, TRACED_LAYERS)
        )
        trace = more.lengthened((layers - TRACED_LAYERS) * (more.saved - fewer.saved))
    return TrainedModel(architecture, model, weigh(model, settings), trace, rows * width)


def training_parts(config: Config, hardware: Hardware, traced: TrainedModel) -> list[Part]:
    parts = zero_parts(config, hardware.gpus, traced) if config.engine == "deepspeed" else local_parts(config, traced)
    parts += _other_models(config, traced)
    trace, host = traced.trace, 0
    saved = trace.saved
    if config.model.gradient_checkpointing == "offload":
        # Of the layers' inputs one is on the GPU at a time.
        layers = traced.architecture.config.get_text_config().num_hidden_layers
        host = traced.hidden_bytes * (layers - 1)
        saved -= host
    head = traced.model.get_output_embeddings().weight
    loss = loss_bytes(
        traced.tokens, head.shape[1], head.shape[0], head.dtype, hardware.device, head_trained=head.requires_grad
    )
    return [
        *parts,
        Part("activations kept for the backward pass", loss=saved, backward=saved, host=host),
        Part("loss: chunk of logits, gradient sums", loss=max(loss, trace.forward - trace.saved)),
        Part("working memory of a layer", backward=trace.backward - trace.saved + traced.weights.dequantized),
    ]


def local_parts(config: Config, traced: TrainedModel) -> list[Part]:
    """One process (`hpt.optim.local`): weights, gradients in their dtype, and what `hpt.optim.adamw` keeps."""
    weights, settings = traced.weights, config.optimizer
    if settings.states == "8bit":
        require("bitsandbytes", 'optimizer.states "8bit"', "'hpt[peft]'")
    on_device = settings.model_copy(update={"offload": False})  # the counted tensors must stay without data
    kept = AdamW(weights.trained, on_device).kept
    masters = sum(t.nbytes for tensors in kept for name, t in tensors.items() if name in ("remainder", "master"))
    moments = sum(t.nbytes for tensors in kept for t in tensors.values()) - masters
    largest = max(range(len(kept)), key=lambda index: weights.trained[index].numel())
    working = _update_bytes(weights.trained[largest], on_device)
    if settings.offload:
        held = [Part("master weights", host=masters), Part("optimizer states", host=moments)]
        working += sum(tensor[:SLICE].nbytes for tensor in kept[largest].values())
    else:
        held = [Part.always("master weights", masters), Part.always("optimizer states", moments)]
    return [
        Part.always("weights", weights.bytes),
        *held,
        Part.training("gradients", weights.gradients),
        Part("working memory of the update", update=working),
    ]


def zero_parts(config: Config, ranks: int, traced: TrainedModel) -> list[Part]:
    """ZeRO (arXiv 1910.02054, fig. 1) over `ranks` GPUs, with the buffers of DeepSpeed's defaults.

    Of Psi trained parameters in 16 bits: weights 2 Psi, gradients 2 Psi, float32 masters 4 Psi and moments 8 Psi;
    stage 1 divides the last two by the ranks, stage 2 gradients too, stage 3 weights too. The update casts its share
    of the gradients to float32. CPU memory is that of all ranks.
    """
    weights, settings = traced.weights, config.deepspeed
    count, size = weights.trained_count, traced.model.dtype.itemsize
    share = -(-count // ranks)
    masters, moments = (4 * share if size < 4 else 0), 8 * share
    gradients = size * (count if settings.stage == 1 else share)
    update_gradients = 4 * share if size < 4 else 0
    bucket = size * min(count, BUCKET)
    resident = -(-weights.bytes // ranks) if settings.stage == 3 else weights.bytes
    if settings.stage < 3:
        parts = [Part.always("weights", resident), Part("weights gathered after the update", update=bucket)]
    else:
        offloaded = settings.offload_parameters
        live = min(weights.bytes, size * LIVE_PARAMETERS)
        whole = weights.bytes - (0 if offloaded else resident)  # to generate, every rank has the whole model
        parts = [
            Part("weights", host=resident * ranks) if offloaded else Part.always("weights", resident),
            Part("weights gathered from other ranks", rollout=whole, loss=live, backward=live),
        ]
    if settings.offload_optimizer:
        # Gradients wait for the update in float32, beside masters and moments.
        parts += [
            Part("master weights", host=masters * ranks),
            Part("optimizer states", host=moments * ranks),
            Part("gradients", host=4 * share * ranks),
        ]
    else:
        parts += [
            Part.always("master weights", masters),
            Part.always("optimizer states", moments),
            Part.training("gradients", gradients),
            Part("working memory of the update", update=update_gradients),
        ]
    return [*parts, Part("buckets of gradients on their way to other ranks", backward=bucket)]


def _other_models(config: Config, traced: TrainedModel) -> list[Part]:
    """A critic of its own weights and optimizer, and the start model where the KL penalty asks for it."""
    parts = []
    if config.rl.advantage == "gae":
        own = local_parts(config, traced)
        total = {moment: sum(getattr(part, moment) for part in own) for moment in (*MOMENTS, "host")}
        parts.append(Part("critic: weights and optimizer", **total))
    if config.loss.kl_coef and not config.model.lora:  # without adapters a peft model is the start model
        parts.append(Part.always("reference model of the KL penalty", traced.weights.bytes))
    return parts


def _update_bytes(parameter: torch.nn.Parameter, settings: OptimizerConfig) -> int:
    """What the update of the largest parameter holds beside what is there already."""
    parameter.grad = torch.empty_like(parameter)
    optimizer = AdamW([parameter], settings)
    with LiveBytes("meta") as live:
        live.add([parameter, parameter.grad, *(tensor for kept in optimizer.kept for tensor in kept.values())])
        base = live.now
        optimizer.step(1e-6, torch.ones((), device="meta"))
        return live.peak - base
