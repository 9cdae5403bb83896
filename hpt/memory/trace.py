"""What a model's own code allocates, found by running it on tensors without data (the meta device).

Nothing is computed and nothing is held but shapes, so this is exact for whatever architecture transformers has: the
layer's saved tensors, what checkpointing and adapters change in them, and the working memory of each operation. Only
attention is replaced: its kernels choose by device, and all that `hpt` uses save the same (arXiv 2307.08691):
queries, keys, values, the result and one float32 a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from hpt.memory.live import LiveBytes

FLASH, MASKED, EAGER, DECODING = "hpt_plan", "hpt_plan_masked", "hpt_plan_eager", "hpt_plan_decoding"


class _FusedAttention(torch.autograd.Function):
    """The shapes of a fused kernel: queries (B, H, L, d), keys and values (B, H_kv, L, d), a bias or none."""

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
    """sdpa told by a mask where packed rows end: keys and values for all heads, and the mask in the model's dtype."""
    key, value = _repeated(module, key), _repeated(module, value)
    bias = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    return _FusedAttention.apply(query, key, value, bias), None


def _eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """The probabilities of all pairs of tokens exist, in float32 and in the model's dtype."""
    key, value = _repeated(module, key), _repeated(module, value)
    scores = torch.matmul(query, key.transpose(2, 3)) * 1.0
    scores = scores + scores.new_empty(query.shape[0], 1, *scores.shape[2:])
    shares = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(shares, value).transpose(1, 2).contiguous(), None


def _decoding(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """Prompts of different lengths have a mask, and with a mask transformers repeats keys and values for all heads."""
    key, value = _repeated(module, key), _repeated(module, value)
    bias = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    del bias
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def _repeated(module: Any, x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(getattr(module, "num_key_value_groups", 1), 1)


for _name, _function in ((FLASH, _flash), (MASKED, _masked), (EAGER, _eager), (DECODING, _decoding)):
    AttentionInterface.register(_name, _function)


@dataclass(frozen=True)
class TrainingTrace:
    """Bytes beyond weights and gradients, for one micro-batch up to the loss's own memory."""

    forward: int  # peak of the forward pass
    saved: int  # live when the loss begins: activations, and the hidden states it reads
    backward: int  # peak of the backward pass, from the gradient of those hidden states on
    hidden: int  # of those hidden states

    def lengthened(self, more: int) -> TrainingTrace:
        """Of a model whose further layers keep `more` bytes."""
        return TrainingTrace(self.forward + more, self.saved + more, self.backward + more, self.hidden)


def trace_training(model: PreTrainedModel, shape: tuple[int, int], loss_tokens: int) -> TrainingTrace:
    """Forward and backward of the decoder of `model`, which lives on the meta device, on (rows, width) tokens.

    `loss_tokens` of them are predicted. Gradients of earlier micro-batches are there already, and not counted.
    """
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    model.train()
    ids = torch.empty(shape, dtype=torch.int64, device="meta")
    positions = torch.empty(loss_tokens, dtype=torch.int64, device="meta")
    with LiveBytes("meta") as live:
        live.add([*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())])
        base = live.now
        live.add([ids, positions])
        states = model.get_decoder()(input_ids=ids, position_ids=ids, use_cache=False)
        hidden = states.last_hidden_state.flatten(0, 1)[positions]
        del states
        saved, forward = live.now - base, live.peak - base
        live.restart_peak()
        size = hidden.nbytes
        if hidden.requires_grad:
            hidden.backward(torch.empty_like(hidden))
        return TrainingTrace(forward, saved, live.peak - base, size)


@dataclass(frozen=True)
class RolloutTrace:
    """Bytes beyond weights of `generate`, without what sampling does with a step's logits."""

    cache: int  # keys and values of every sequence at its full length
    working: int  # peak beyond that and the weights


def trace_rollout(model: PreTrainedModel, sequences: int, prompt: int, response: int) -> RolloutTrace:
    """A prompt's pass and a last step of `generate` on `sequences` sequences at once."""
    model.eval()
    with torch.inference_mode(), LiveBytes("meta") as live:
        live.add([*model.parameters(), *model.buffers()])
        base = live.now
        cache = DynamicCache(config=model.config)
        ids = torch.empty(sequences, prompt, dtype=torch.int64, device="meta")
        model.get_decoder()(input_ids=ids, position_ids=ids, past_key_values=cache, use_cache=True)
        prompt_peak = live.peak - base
        layers: list[Any] = list(cache.layers)
        if response > 1:
            for layer in layers:
                layer.keys = layer.keys.new_empty(*layer.keys.shape[:2], prompt + response - 2, layer.keys.shape[3])
                layer.values = layer.values.new_empty(layer.keys.shape)
            last = ids[:, :1].clone()
            live.restart_peak()
            model.get_decoder()(input_ids=last, position_ids=last, past_key_values=cache, use_cache=True)
        full = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return RolloutTrace(full, max(prompt_peak, live.peak - base) - full)
