"""The sizes of models and batches."""

from __future__ import annotations

from dataclasses import dataclass

GROUP = 4  # rollouts of a prompt


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model with tied embeddings, and a batch of `rows` sequences with `length` trained tokens each.

    micro_batches: into how many a batch is split, whose gradients are added up.
    """

    vocabulary: int
    width: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    rows: int
    length: int
    dtype: str
    micro_batches: int = 1
    checkpointing: bool = False  # of activations

    @property
    def head_share(self) -> float:
        """The head's share of the weights in matrix products, which is its share of the FLOPs without attention."""
        head = self.vocabulary * self.width
        attention = 2 * self.width**2 * (1 + self.key_value_heads / self.heads)
        return head / (head + self.layers * (attention + 3 * self.width * self.intermediate))


SHAPES = {
    "small": Shape(49152, 128, 512, 2, 4, 2, rows=8, length=128, dtype="float32"),
    "smollm2-135m": Shape(49152, 576, 1536, 30, 9, 3, rows=4, length=128, dtype="float32"),
    "qwen2.5-1.5b": Shape(151936, 1536, 8960, 28, 12, 2, rows=8, length=1024, dtype="bfloat16", checkpointing=True),
    "tiny": Shape(256, 32, 64, 1, 4, 2, rows=8, length=8, dtype="float32", micro_batches=2),
}
