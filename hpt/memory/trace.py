"""Traces what a model's own code allocates, by running it on the meta device, where tensors have shapes but no data.

Nothing is computed, so this is fast, and exact for every architecture in transformers: the tensors that a layer saves
for its backward pass, what checkpointing and adapters change in them, and the working memory of each operation. Only
attention is replaced by stand-ins, since its kernels depend on the device. All fused kernels save the same tensors
(FlashAttention-2, arXiv 2307.08691): queries, keys, values, the result, and one float32 per query and head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from hpt.memory.allocations import AllocationTracker

# Names of the stand-ins in transformers, which takes a name with "flash" in it for that of a package.
FLASH, MASKED, EAGER, DECODING = "hpt_trace_fused", "hpt_trace_masked", "hpt_trace_eager", "hpt_trace_decoding"


class _FusedAttention(torch.autograd.Function):
    """Allocates what a fused kernel does: query (B, H, L, d), key and value (B, H_kv, L, d), and perhaps a bias.

    The result is (B, L, H, d).
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *bias: Any) -> torch.Tensor:
        batch, heads, length, _ = query.shape
        result = query.new_empty(batch, length, heads, value.shape[-1])
        normalisers = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, normalisers, *bias)
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        query, key, value, _, _, *bias = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), *(None for _ in bias)


def _flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
    return _FusedAttention.apply(query, key, value), None


def _masked(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """sdpa with a mask that tells packed rows apart: keys and values are repeated for all heads, the mask is a bias."""
    key, value = _repeated(module, key), _repeated(module, value)
    bias = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    return _FusedAttention.apply(query, key, value, bias), None


def _eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """Eager attention: the probabilities of all pairs of tokens are stored in float32 and in the model's dtype."""
    key, value = _repeated(module, key), _repeated(module, value)
    scores = torch.matmul(query, key.transpose(2, 3)) * 1.0
    scores = scores + scores.new_empty(query.shape[0], 1, *scores.shape[2:])
    probabilities = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None


def _decoding(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """Generation: prompts of different lengths need a mask, for which transformers repeats keys and values."""
    key, value = _repeated(module, key), _repeated(module, value)
    bias = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    del bias
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def _repeated(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Keys or values (B, H_kv, L, d) for all query heads: (B, H, L, d)."""
    return x.repeat_interleave(getattr(module, "num_key_value_groups", 1), 1)


for _name, _function in ((FLASH, _flash), (MASKED, _masked), (EAGER, _eager), (DECODING, _decoding)):
    AttentionInterface.register(_name, _function)


@dataclass(frozen=True)
class TrainingTrace:
    """Bytes that one micro-batch takes beside weights and gradients, without the loss's own memory."""

    forward: int  # peak of the forward pass
    saved: int  # live when the loss begins: saved activations, and the hidden states that the loss reads
    backward: int  # peak of the backward pass, which begins with the gradient of those hidden states

    def with_saved(self, more: int) -> TrainingTrace:
        """The trace of a model whose further layers save `more` bytes."""
        return TrainingTrace(self.forward + more, self.saved + more, self.backward + more)


def trace_training(model: PreTrainedModel, rows: int, width: int) -> TrainingTrace:
    """Traces the forward and backward pass of a meta model's decoder on (rows, width) tokens.

    The loss reads the hidden states of all of them. Gradients exist already, as they do from the second micro-batch
    on, and are not counted.
    """
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    model.train()
    ids = torch.empty(rows, width, dtype=torch.int64, device="meta")
    positions = torch.empty(rows * width, dtype=torch.int64, device="meta")
    with AllocationTracker("meta") as live:
        live.add([*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())])
        base = live.current
        live.add([ids, positions])
        states = model.get_decoder()(input_ids=ids, position_ids=ids, use_cache=False)
        hidden = states.last_hidden_state.flatten(0, 1)[positions]
        del states
        saved, forward = live.current - base, live.peak - base
        live.reset_peak()
        if hidden.requires_grad:
            hidden.backward(torch.empty_like(hidden))
        return TrainingTrace(forward, saved, live.peak - base)


@dataclass(frozen=True)
class RolloutTrace:
    """Bytes that `generate` takes beside weights, without what sampling does with the logits."""

    cache: int  # KV cache of all sequences at their full length
    working: int  # peak beside weights and KV cache


def trace_rollout(model: PreTrainedModel, sequences: int, prompt: int, response: int) -> RolloutTrace:
    """Traces the prefill and the last decoding step of `generate` on `sequences` sequences at once.

    prompt, response: tokens per sequence.
    """
    model.eval()
    with torch.inference_mode(), AllocationTracker("meta") as live:
        live.add([*model.parameters(), *model.buffers()])
        base = live.current
        cache = DynamicCache(config=model.config)
        ids = torch.empty(sequences, prompt, dtype=torch.int64, device="meta")
        model.get_decoder()(input_ids=ids, position_ids=ids, past_key_values=cache, use_cache=True)
        prefill_peak = live.peak - base
        layers: list[Any] = list(cache.layers)
        if response > 1:
            for layer in layers:
                layer.keys = layer.keys.new_empty(*layer.keys.shape[:2], prompt + response - 2, layer.keys.shape[3])
                layer.values = layer.values.new_empty(layer.keys.shape)
            last = ids[:, :1].clone()
            live.reset_peak()
            model.get_decoder()(input_ids=last, position_ids=last, past_key_values=cache, use_cache=True)
        full = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return RolloutTrace(full, max(prefill_peak, live.peak - base) - full)
