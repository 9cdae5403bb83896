"""Seconds of training: forward, backward, loss and update, micro-batch by micro-batch.

With P weights in the layers, P_a in adapters, T tokens in a micro-batch and A pairs of tokens that attend:

    products    2 P T forward, 2 P T for the gradient of the inputs, 2 P T for that of the weights where they are
                trained, 6 P_a T for adapters, and 2 P T again with gradient checkpointing
    attention   4 query_width A layers forward, twice and a half of it backward, and forward again with checkpointing
    loss        6 N V D for N response tokens, 4 where the head is frozen

over the FLOP/s that training reaches. Communication of ZeRO runs beside computation: the longer of the two counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpt.config.schema import Config
from hpt.memory.trace import FLASH
from hpt.method.micro_batches import rows_of_rank, split_rows, tokens_of
from hpt.method.rows import Row, Signal
from hpt.support.distributed import World
from hpt.timing.machine import Machine
from hpt.timing.shape import ModelShape

# Bytes of CPU memory that the update of offloaded states moves per second (assumed: eight channels of DDR4).
HOST_BANDWIDTH = 100e9


@dataclass(frozen=True)
class MicroBatchCounts:
    """What a micro-batch has: rows as the trainer would lay them out."""

    tokens: int  # padding included
    responses: int  # tokens that are trained
    pairs: float  # pairs of tokens that attend


def micro_batch_counts(
    rows: Sequence[Row], config: Config, *, gpus: int, packed: bool, attention: str
) -> list[MicroBatchCounts]:
    """The micro-batches of the first of `gpus` ranks. attention: a stand-in of `hpt.memory.trace`.

    Only fused attention without a mask leaves out pairs: those of different rows, and of later tokens.
    """
    own = rows_of_rank(rows, World(0, gpus))
    counts = []
    for part in split_rows(own, config.batch.tokens, packed=packed):
        tokens = tokens_of(part, packed=packed)
        width = tokens if packed else tokens // len(part)
        if attention == FLASH:
            pairs = sum(len(row.tokens) ** 2 for row in part) / 2 if packed else len(part) * width**2 / 2
        else:
            pairs = float(width**2 if packed else len(part) * width**2)
        counts.append(MicroBatchCounts(tokens, sum(row.response_length for row in part), pairs))
    return counts


def row_of(prompt: int, response: int) -> Row:
    """A row of that many tokens; which ones they are does not matter here."""
    return Row([0] * (prompt + response), prompt, Signal.RL, weight=1.0)


@dataclass(frozen=True)
class Trainer:
    """A model in training on a machine, as a recipe has it."""

    config: Config
    shape: ModelShape
    machine: Machine

    def micro_batch(self, counts: MicroBatchCounts) -> float:
        """Seconds of the forward and backward pass with the loss."""
        shape, machine = self.shape, self.machine
        recomputed = bool(self.config.model.gradient_checkpointing)
        passes = 2 + recomputed + (self.config.model.lora is None)
        flops = 2.0 * shape.body * counts.tokens * passes
        flops += 2.0 * shape.adapters * counts.tokens * (3 + recomputed)
        flops += 4 * shape.query_width * shape.layers * counts.pairs * (3.5 + recomputed)
        flops += (6 if shape.trains_head else 4) * shape.head * counts.responses
        computing = flops / machine.training_flops
        computing += counts.responses * shape.vocabulary * machine.loss_logit
        numbers = shape.layers * shape.activations * counts.tokens
        computing += numbers * machine.activation
        if shape.quantized:  # each use of the weights dequantizes them first
            computing += (2 + recomputed) * shape.bytes_read(quantized=True) / machine.bandwidth
        computing = max(computing, self._communication())
        if self.config.model.gradient_checkpointing == "offload":
            computing += 2 * counts.tokens * shape.width * shape.itemsize * shape.layers / machine.host_link
        return computing + shape.layers * machine.training_layer

    def forward(self, counts: MicroBatchCounts) -> float:
        """Seconds of a forward pass that gives log-probabilities."""
        shape = self.shape
        flops = 2.0 * (shape.body + shape.adapters) * counts.tokens + 2.0 * shape.head * counts.responses
        flops += 4 * shape.query_width * shape.layers * counts.pairs
        numbers = shape.layers * shape.activations * counts.tokens
        seconds = flops / self.machine.training_flops + numbers * self.machine.activation / 3
        return seconds + shape.layers * self.machine.training_layer / 3

    def update(self) -> float:
        """Seconds of the optimizer's update: all it reads and writes, once each."""
        config, shape, machine = self.config, self.shape, self.machine
        own = shape.trained / machine.gpus if config.engine == "deepspeed" else shape.trained
        moments = 2.0 if config.engine == "local" and config.optimizer.states == "8bit" else 8.0
        master = 4 - shape.itemsize if config.engine == "local" and config.model.dtype == "bfloat16" else 4
        masters = 0 if shape.itemsize == 4 else master
        moved = 2 * (moments + masters + shape.itemsize) + 2 * shape.itemsize  # states and weights; gradient, its norm
        if config.engine == "deepspeed" and config.deepspeed.offload_optimizer:
            crossing = own * 2 * shape.itemsize / machine.host_link
            return crossing + shape.trained * moved / HOST_BANDWIDTH
        if config.engine == "local" and config.optimizer.offload:
            return own * (2 * (moments + masters) / machine.host_link + 4 * shape.itemsize / machine.bandwidth)
        seconds = own * moved / machine.bandwidth
        if (
            config.engine == "deepspeed" and config.deepspeed.stage < 3
        ):  # weights are gathered; stage 1: and gradients summed
            seconds += (2 if config.deepspeed.stage == 1 else 1) * self._exchanged() / machine.link
        return seconds

    def _communication(self) -> float:
        """Seconds of ZeRO's collectives per micro-batch: gradients reduced from stage 2 on, weights gathered twice."""
        if self.config.engine != "deepspeed":
            return 0.0
        stage = self.config.deepspeed.stage
        gradients = self._exchanged() if stage >= 2 else 0.0
        weights = 2 * self.shape.weight_bytes * self._others if stage == 3 else 0.0
        return (gradients + weights) / self.machine.link

    def _exchanged(self) -> float:
        return self.shape.trained * self.shape.itemsize * self._others

    @property
    def _others(self) -> float:
        """The share of a tensor that other ranks hold."""
        return (self.machine.gpus - 1) / self.machine.gpus
