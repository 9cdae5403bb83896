"""What of a model decides how long it computes: counts of weights and of numbers per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpt.memory.meta_model import NF4_BYTES
from hpt.memory.training import TrainedModel


@dataclass(frozen=True)
class ModelShape:
    """Counts, and bytes where the name says so."""

    layers: int
    width: int  # of the hidden states
    inner: int  # width of the MLP
    query_width: int  # heads x width of a head
    groups: int  # query heads per key and value head
    vocabulary: int
    body: int  # weights of the layers: each is multiplied once per token
    adapters: int  # weights of the adapters
    trained: int  # weights that are trained
    trains_head: bool
    itemsize: int  # bytes of a weight that is not quantized
    quantized: bool  # the body is stored in 4 bits
    weight_bytes: int  # of all weights as the trainer holds them
    kv_bytes: int  # keys and values of one token

    @classmethod
    def of(cls, trained: TrainedModel, *, quantized: bool) -> ModelShape:
        """The shape of a recipe's model. quantized: whether model.quantization is set."""
        text = trained.architecture.config.get_text_config()
        head: Any = trained.model.get_output_embeddings().weight
        embedding: Any = trained.model.get_input_embeddings().weight
        heads = text.num_attention_heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
        itemsize = trained.model.dtype.itemsize
        tied = head is embedding
        return cls(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            query_width=heads * head_width,
            groups=heads // kv_heads,
            vocabulary=head.shape[0],
            body=trained.memory.count - head.numel() - (0 if tied else embedding.numel()),
            adapters=trained.memory.adapter_count,
            trained=trained.memory.trained_count,
            trains_head=head.requires_grad,
            itemsize=itemsize,
            quantized=quantized,
            weight_bytes=trained.memory.weight_bytes,
            kv_bytes=2 * text.num_hidden_layers * kv_heads * head_width * itemsize,
        )

    @property
    def head(self) -> int:
        return self.vocabulary * self.width

    @property
    def activations(self) -> int:
        """Numbers that a layer's own operations (norms, rotary embedding, activation, sums) pass on, per token."""
        return 8 * self.width + 2 * self.query_width + 4 * self.inner

    def bytes_read(self, quantized: bool) -> float:
        """Bytes that one pass over body and head moves: 4-bit weights are read, written in 16 bits and read again."""
        per_weight = NF4_BYTES + 2 * self.itemsize if quantized else self.itemsize
        return self.body * per_weight + (self.head + self.adapters) * self.itemsize
