"""Tiny random models of transformers, a batch for them, and a comparison of gradients."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

V = 97
SMALL = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # so that the loss is far from that of a uniform distribution
}


def make(name: str = "Qwen2", **settings) -> nn.Module:
    """A tiny random model."""
    torch.manual_seed(0)
    cls = getattr(transformers, f"{name}ForCausalLM")
    return cls(cls.config_class(**SMALL | settings))


def batch(rows: int = 3, length: int = 11, seed: int = 1) -> dict[str, Tensor]:
    """Token ids, right padding, and labels of -100 on prompts and padding."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (rows, length), generator=g)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=g)
    attention_mask = (torch.arange(length) < lengths).long()
    labels = ids.masked_fill((attention_mask == 0) | (torch.arange(length) < 3), -100)
    return {"input_ids": ids, "attention_mask": attention_mask, "labels": labels}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], relative: float = 2e-5) -> None:
    """Equal tensor by tensor. A gradient that is zero but for rounding is compared with the norm of all."""
    assert found.keys() == wanted.keys()
    total = sum(w.double().square().sum() for w in wanted.values()) ** 0.5
    for name, want in wanted.items():
        error = (found[name] - want).norm()
        assert error <= relative * max(float(want.norm()), 1e-3 * float(total)), (name, float(error / want.norm()))


ARCHITECTURES = {
    "Qwen2": {},
    "Qwen2, tied": {"tie_word_embeddings": True},
    "Llama": {},
    "Qwen3": {},
    "Gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Gemma3, text": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Gemma3, no cap": {"query_pre_attn_scalar": 8},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Phi": {},  # its head has a bias
    "Mixtral": {"output_router_logits": True, "router_aux_loss_coef": 0.5, "num_local_experts": 4},
}
