"""How fast a machine computes, moves bytes and starts operations: of a GPU from its data sheet and stated shares of it.

All times of a plan come from these rates. Those of a CPU are measured (`hpt.timing.cpu`).
"""

from __future__ import annotations

from dataclasses import dataclass

from hpt.config.schema import Config
from hpt.memory.hardware import Hardware
from hpt.support.cards import CARDS, Card

# Share of a card's FLOP/s that training reaches in its matrix products with all that is between them. Reports of
# frameworks for dense models of this size lie from 0.35 to 0.55.
TRAINING_SHARE = 0.45
# The same with adapters: narrow products between the wide ones.
ADAPTER_SHARE = 0.35
# Share of the FLOP/s that prefill and decoding of many sequences reach: plain products, no loss.
DECODING_SHARE = 0.6
# Share of the memory's bandwidth that a kernel reaches that only reads or copies.
BANDWIDTH_SHARE = 0.8
# Share of a link's bandwidth that large transfers reach.
LINK_SHARE = 0.7
# Seconds by which a layer delays a decoding step of `generate`: about 15 kernels, each started by Python.
EAGER_LAYER = 0.6e-3
# The same for a layer whose seven matrices have adapters or 4-bit weights: three more kernels each.
EAGER_ADAPTED_LAYER = 1.2e-3
# `generate`'s own work per decoding step: logits processors, stop conditions, sampling.
EAGER_STEP = 3e-3
# vLLM replays CUDA graphs: what is left is the gap between kernels, and its scheduler with the sampler per step.
VLLM_LAYER, VLLM_STEP = 0.02e-3, 3e-3
# vLLM's all-reduce of a layer's two results with tensor parallelism, beside the bytes.
ALL_REDUCE = 0.03e-3
# Seconds by which a layer delays a micro-batch, forward and backward.
TRAINING_LAYER = 2e-3


@dataclass(frozen=True)
class Machine:
    """Rates that a run reaches on one GPU (or CPU), not peaks; how many GPUs; and overheads in seconds.

    sampling_logit, loss_logit: per entry of the logits, for what sampling and the loss do beside the matrix product.
    activation: per number of `ModelShape.activations`, token and layer, forward and backward, recomputed where the
    recipe does; on a GPU it is part of training_flops.
    """

    name: str
    gpus: int
    training_flops: float  # FLOP/s
    decoding_flops: float  # FLOP/s
    bandwidth: float  # bytes/s
    link: float  # bytes/s between GPUs
    host_link: float  # bytes/s between GPU and CPU memory
    generation_start: float  # per call of the rollout engine
    decoding_layer: float
    decoding_step: float
    decoding_sequence: float  # per running sequence and decoding step
    training_layer: float
    sampling_logit: float
    loss_logit: float
    activation: float


def gpu_machine(config: Config, hardware: Hardware) -> Machine:
    """The rates of the plan's GPUs for a recipe."""
    assert hardware.card is not None
    card: Card = CARDS[hardware.card]
    peak = card.flops_32_bit if config.model.dtype == "float32" else card.flops_16_bit
    adapted = config.model.lora is not None
    bandwidth = BANDWIDTH_SHARE * card.bandwidth
    vllm = config.rollout.engine == "vllm"
    layer = VLLM_LAYER if vllm else EAGER_ADAPTED_LAYER if adapted else EAGER_LAYER
    return Machine(
        name=f"{hardware.gpus} x {hardware.card}" if hardware.gpus > 1 else hardware.card,
        gpus=hardware.gpus,
        training_flops=(ADAPTER_SHARE if adapted else TRAINING_SHARE) * peak,
        decoding_flops=DECODING_SHARE * peak,
        bandwidth=bandwidth,
        link=LINK_SHARE * card.link,
        host_link=LINK_SHARE * card.host_link,
        generation_start=0.0,
        decoding_layer=layer,
        decoding_step=VLLM_STEP if vllm else EAGER_STEP,
        decoding_sequence=0.0,
        training_layer=TRAINING_LAYER,
        # Logits in 16 and 32 bits, log-probabilities, softmax and the draw: about ten float32 passes.
        sampling_logit=40 / bandwidth,
        loss_logit=0.0,
        activation=0.0,
    )
