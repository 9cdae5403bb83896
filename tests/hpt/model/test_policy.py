"""The policy's forward and backward pass: no logits, checkpointing, offload, Liger's kernels."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from policy_gradients import CPU, LORA, close, gradients, settings, with_signal
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from hpt.method.micro_batches import micro_batches
from hpt.method.rows import Row, Signal
from hpt.model.liger import apply_liger
from hpt.model.loading import load_model, load_policy
from hpt.model.policy import Policy


def test_a_step_forms_no_logits(world: Path) -> None:
    """With a vocabulary larger than the rest, forward and backward use less than one matrix [tokens, vocabulary]."""
    vocabulary = 30_000
    shape = Qwen2Config.from_pretrained(world.parent / "model", vocab_size=vocabulary)
    torch.manual_seed(0)
    config = settings(world)
    policy = Policy(Qwen2ForCausalLM(shape), config)
    generator = torch.Generator().manual_seed(1)
    row = Row(torch.randint(2, vocabulary, (2001,), generator=generator).tolist(), 1, Signal.SFT, 1 / 2000)
    (batch,) = micro_batches([row], 10_000, packed=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        policy.loss(batch).loss.backward()
    held, peak = 0, 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert policy.model.get_output_embeddings().weight.grad is not None
    assert 0 < peak < 2000 * vocabulary * 4


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("mode", ["true", "offload"])
def test_gradient_checkpointing_does_not_change_gradients(world: Path, mode: str, lora: bool) -> None:
    changes = [LORA] if lora else []
    models = [
        with_signal(load_policy(settings(world, *changes, f"model.gradient_checkpointing={kind}"), None, CPU))
        for kind in ("false", mode)
    ]
    plain, checkpointed = (gradients(model, settings(world, *changes)) for model in models)
    assert len(plain) == (28 if lora else len(list(models[0].parameters())))
    close(checkpointed, plain, rtol=0, atol=0)


def test_offload_frees_the_inputs_of_layers(world: Path) -> None:
    """A layer's input is freed in the forward pass, since only its copy in CPU memory is kept for the backward pass."""

    def inputs_alive(mode: str) -> int:
        config = settings(world, f"model.gradient_checkpointing={mode}")
        model = load_policy(config, None, CPU)
        inputs: list[weakref.ref[torch.Tensor]] = []
        for layer in model.get_decoder().layers:
            layer.register_forward_pre_hook(lambda module, given: inputs.append(weakref.ref(given[0])))
        model.train()
        states = model.get_decoder()(input_ids=torch.arange(2, 10)[None], use_cache=False).last_hidden_state
        gc.collect()
        alive = sum(reference() is not None for reference in inputs)
        states.sum().backward()
        return alive

    assert inputs_alive("true") == 2
    assert inputs_alive("offload") == 0


def test_ligers_kernels_compute_the_same(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the loss is replaced. Only the kernel of the rotary embeddings runs in Triton's interpreter."""
    pytest.importorskip("liger_kernel")
    from liger_kernel.transformers.rope import liger_rotary_pos_emb
    from transformers.models.qwen2 import modeling_qwen2

    for name in ("apply_rotary_pos_emb", "Qwen2RMSNorm", "Qwen2MLP"):
        monkeypatch.setattr(modeling_qwen2, name, getattr(modeling_qwen2, name))  # restored when the test ends
    theirs = modeling_qwen2.apply_rotary_pos_emb
    config = settings(world)
    plain, patched = (load_model(config.model.path, config.model, CPU) for _ in range(2))
    apply_liger(patched)
    assert "Liger" in patched.model.layers[0].mlp.forward.__qualname__
    assert "Liger" in patched.model.norm.forward.__qualname__
    assert "forward" not in vars(patched)  # Liger's fused loss would replace forward
    patched.model.norm = plain.model.norm  # Triton's interpreter cannot run Liger's norm and MLP
    for layer, own in zip(patched.model.layers, plain.model.layers, strict=True):
        layer.input_layernorm, layer.post_attention_layernorm = own.input_layernorm, own.post_attention_layernorm
        layer.mlp = own.mlp
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert modeling_qwen2.apply_rotary_pos_emb is liger_rotary_pos_emb
        got = patched.model(input_ids=ids, use_cache=False).last_hidden_state
        monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", theirs)
        expected = plain.model(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
