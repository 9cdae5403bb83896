"""Models as a recipe asks for them: adapters, 4-bit weights, gradient checkpointing, Liger's kernels, attention."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.method.micro_batches import MicroBatch, micro_batches
from hpt.method.rows import Row, Signal
from hpt.model import attention
from hpt.model.adapters import ADAPTER_CONFIG
from hpt.model.liger import apply_liger
from hpt.model.loading import check_model_settings, load_model, load_policy
from hpt.model.policy import Policy
from hpt.records.checkpoints import checkpoints
from hpt.rollout import Sampling, TransformersEngine
from hpt.support.errors import ConfigError, HptError

CPU = torch.device("cpu")
LORA = "model.lora={rank: 4, alpha: 8}"


def settings(world: Path, *changes: str) -> Config:
    return load_config(world, changes)


def batches(packed: bool) -> list[MicroBatch]:
    """Rows of several lengths and signals."""
    generator = torch.Generator().manual_seed(1)
    rows = [
        Row(torch.randint(2, 20, (length,), generator=generator).tolist(), prompt, signal, 1 / 40, advantage)
        for length, prompt, signal, advantage in (
            (9, 4, Signal.RL, 1.0),
            (5, 2, Signal.RL, -0.5),
            (12, 3, Signal.SFT, 1.0),
            (7, 6, Signal.OFF_POLICY, 1.0),
        )
    ]
    return micro_batches(rows, 60, packed=packed)


def gradients(model: PreTrainedModel, config: Config, packed: bool = False) -> dict[str, torch.Tensor]:
    policy = Policy(model, config)
    model.train()
    model.zero_grad()
    for batch in batches(packed):
        policy.loss(batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_signal(model: PreTrainedModel) -> PreTrainedModel:
    """New adapters have B = 0, so that A has no gradient: makes B random."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], **tolerance)


class TestAdapters:
    def test_only_adapters_are_trained_and_the_head_is_frozen(self, world: Path) -> None:
        config = settings(world, LORA)
        model = load_policy(config, None, CPU)
        found = gradients(with_signal(model), config)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == found.keys()
        assert all("lora_" in name for name in trained)
        assert len(trained) == 2 * 2 * 7  # A and B, 2 layers, 7 linear layers each; not the head
        assert all(gradient.abs().max() > 0 for gradient in found.values())
        assert not Policy(model, config).module.head.weight.requires_grad

    def test_new_adapters_change_nothing_and_depend_on_the_seed(self, world: Path) -> None:
        plain = Policy(load_policy(settings(world), None, CPU), settings(world))
        models = [load_policy(settings(world, LORA, f"seed={seed}"), None, CPU) for seed in (0, 0, 1)]
        (batch,) = batches(packed=True)
        adapted = Policy(models[0], settings(world, LORA))
        assert torch.equal(adapted.logprobs(batch), plain.logprobs(batch))
        firsts = [next(p for n, p in model.named_parameters() if "lora_A" in n) for model in models]
        assert torch.equal(firsts[0], firsts[1])
        assert not torch.equal(firsts[0], firsts[2])

    def test_rollouts_do_without_the_sampling_defaults_of_the_folder(self, world: Path) -> None:
        model = load_policy(settings(world, LORA), None, CPU)
        defaults = model.get_base_model().generation_config
        defaults.min_p = 1.0  # only the most likely token
        (rollouts,) = TransformersEngine(model, stop_ids=[1], batch_size=9).generate([[5]], Sampling(9, 1), 0)
        assert len({rollout.tokens[0] for rollout in rollouts}) > 1
        assert model.get_base_model().generation_config is defaults

    def test_adapters_have_the_models_dtype(self, world: Path) -> None:
        for dtype in ("bfloat16", "float32"):
            model = load_policy(settings(world, LORA, f"model.dtype={dtype}"), None, CPU)
            assert {p.dtype for p in model.parameters() if p.requires_grad} == {getattr(torch, dtype)}

    def test_unknown_target_modules_are_named(self, world: Path) -> None:
        with pytest.raises(HptError, match=r"model\.lora.*nowhere"):
            load_policy(settings(world, "model.lora={targets: [nowhere]}"), None, CPU)

    @pytest.mark.parametrize("lora", [True, False])
    def test_a_resumed_run_cannot_add_or_remove_adapters(self, world: Path, tmp_path: Path, lora: bool) -> None:
        if not lora:
            (tmp_path / ADAPTER_CONFIG).write_text("{}")
        with pytest.raises(ConfigError, match=r"model\.lora"):
            load_policy(settings(world, *([LORA] if lora else [])), tmp_path, CPU)

    def test_impossible_combinations_are_named(self, world: Path) -> None:
        for changes, word in (
            (["model.quantization=nf4"], "model.lora"),
            ([LORA, "method=ppo"], "critic"),
            (["model.attention=eager", "batch.packing=packed"], "eager"),
        ):
            with pytest.raises(ConfigError, match=word):
                settings(world, *changes)


KINDS = {
    "lora": [LORA],
    "lora, bfloat16": [LORA, "model.dtype=bfloat16", "model.gradient_checkpointing=true", "optimizer.offload=true"],
    "qlora": [
        LORA,
        "model.dtype=bfloat16",
        "model.quantization=nf4",
        "model.gradient_checkpointing=offload",
        "optimizer.states=8bit",
    ],
}


class TestRuns:
    @pytest.fixture(scope="class", params=list(KINDS))
    def run(self, request: Any, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
        kind = KINDS[request.param]
        if "qlora" in request.param:
            pytest.importorskip("bitsandbytes")
        folder = tmp_path_factory.mktemp("lora") / "run"
        wanted = ["steps=4", "eval.every=0", "method=sft", "optimizer.lr=1e-2", *kind]
        assert main(["train", str(world), f"output={folder}", *wanted]) == 0
        return wanted, folder

    def test_resuming_is_bit_exact(
        self, run: tuple[list[str], Path], tmp_path: Path, metrics_of: Callable[[Path], Any]
    ) -> None:
        copy = tmp_path / "run"
        shutil.copytree(run[1], copy)
        shutil.rmtree(checkpoints(copy)[-1])
        assert main(["train", "--resume", str(copy)]) == 0
        assert metrics_of(copy) == metrics_of(run[1])
        one, other = (load_file(checkpoints(folder)[-1] / "adapter_model.safetensors") for folder in (copy, run[1]))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        before = load_file(checkpoints(run[1])[0] / "adapter_model.safetensors")
        assert not any(torch.equal(before[name], other[name]) for name in one)  # both A and B are trained

    def test_the_checkpoint_is_small_and_evaluates(
        self, run: tuple[list[str], Path], world: Path, tmp_path: Path
    ) -> None:
        last = checkpoints(run[1])[-1]
        assert not (last / "model.safetensors").exists()
        data = str(world.parent / "eval.jsonl")
        output = tmp_path / "results"
        asked = ["--data", data, "--max-tokens", "8", "--temperature", "0", "--verifier", "rewards:has_a_digit"]
        assert main(["eval", str(last), *asked, "--output", str(output)]) == 0
        assert json.loads((output / "summary.json").read_text())

    def test_merged_weights_are_the_trained_model(self, run: tuple[list[str], Path], world: Path) -> None:
        last = checkpoints(run[1])[-1]
        config = settings(world, *run[0])
        merged = Policy(load_model(str(last), config.model, CPU), config)
        assert not hasattr(merged.model, "peft_config")
        trained = Policy(load_policy(config, last, CPU), config)
        (batch,) = batches(packed=True)
        got, expected = merged.logprobs(batch), trained.logprobs(batch)
        bound = {"float32": 1e-5, "bfloat16": 0.05}[config.model.dtype]
        if config.model.quantization:
            bound = 1.0  # trained over 4-bit weights, merged into the original ones
        torch.testing.assert_close(got, expected, atol=bound, rtol=0)
        start = Policy(load_model(config.model.path, config.model, CPU), config).logprobs(batch)
        assert (got - start).abs().max() > 2 * (got - expected).abs().max()


def test_export_is_a_plain_model(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = tmp_path / "run", tmp_path / "exported"
    asked = ["steps=1", "eval.every=0", "method=sft", "optimizer.lr=1e-1", LORA, "model.dtype=bfloat16"]
    assert main(["train", str(world), f"output={run}", *asked]) == 0
    assert main(["export", str(run), str(folder)]) == 0
    assert not (folder / ADAPTER_CONFIG).exists()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    merged = load_model(str(checkpoints(run)[-1]), settings(world, *asked).model, CPU).state_dict()
    assert plain.keys() == merged.keys()
    assert all(torch.equal(plain[name], merged[name]) for name in merged)
    for source, target, word in (
        (run, folder, "not empty"),
        (run, folder / "config.json", "cannot be written"),
        (tmp_path / "none", tmp_path / "new", "checkpoint"),
    ):
        assert main(["export", str(source), str(target)]) == 2
        assert word in " ".join(capsys.readouterr().err.split())


def test_an_export_that_cannot_be_written_leaves_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = tmp_path / "run", tmp_path / "exported"
    assert main(["train", str(world), f"output={run}", "steps=1", "eval.every=0", "method=sft"]) == 0

    def full(_: Any, folder: Path) -> None:
        (folder / "config.json").touch()
        raise SafetensorError("No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(Qwen2ForCausalLM, "save_pretrained", full)
        assert main(["export", str(run), str(folder)]) == 2
    assert f"the model cannot be written to {folder}: No space left" in " ".join(capsys.readouterr().err.split())
    assert not list(folder.iterdir())
    weights = checkpoints(run)[-1] / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    assert main(["export", str(run), str(folder)]) == 2
    assert f"{weights} is not what was written" in " ".join(capsys.readouterr().err.split())


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


def test_qlora_has_4_bit_weights_and_the_same_gradients_after_a_forward_pass_in_eval_mode(world: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    config = settings(world, *KINDS["qlora"])
    model = with_signal(load_policy(config, None, CPU))
    linear = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(linear) == 2 * 7
    assert all(m.weight.dtype == torch.uint8 and m.weight.quant_state.nested for m in linear)
    assert Policy(model, config).module.head.weight.dtype == torch.bfloat16
    before = gradients(model, config)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(2, 10)[None], use_cache=False)
    close(gradients(model, config), before, rtol=0, atol=0)


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


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_packed_and_padded_gradients_are_equal(world: Path, checkpointing: str, lora: bool) -> None:
    """With sdpa: flash attention and the backward pass of flex attention need a GPU; eager attention cannot pack."""
    config = settings(world, f"model.gradient_checkpointing={checkpointing}", *([LORA] if lora else []))
    model = with_signal(load_policy(config, None, CPU))
    assert model.config._attn_implementation == "sdpa"
    assert len(batches(packed=True)) == len(batches(packed=False)) == 1
    close(gradients(model, config, packed=True), gradients(model, config), rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_keeps_packed_rows_apart_and_generation_uses_sdpa(world: Path) -> None:
    config = settings(world)
    model = load_policy(config, None, CPU).eval()
    policy = Policy(model, config)
    engine = TransformersEngine(model, stop_ids=[1], batch_size=8)
    padded = policy.logprobs(batches(packed=False)[0])
    expected = engine.generate([[3, 4], [5]], Sampling(2, 9), 0)
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):  # the same attention without compiling, which takes a minute
        assert torch.allclose(policy.logprobs(batches(packed=True)[0]), padded, atol=1e-5)
    assert engine.generate([[3, 4], [5]], Sampling(2, 9), 0) == expected
    assert model.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ([], "cpu", None),
        (["model.attention=flash_attention_2"], "cpu", "GPU"),
        (["model.attention=flash_attention_2"], "cuda", "bfloat16"),
        (
            ["model.attention=flash_attention_2", "model.dtype=bfloat16"],
            "cuda",
            r"hpt\[flash\].*pip install flash-attn",
        ),
        (["model.attention=kernels-community/flash-attn2"], "cpu", "GPU"),
        (["model.attention=kernels-community/flash-attn2", "model.dtype=bfloat16"], "cuda", r"hpt\[flash\]"),
        (["model.attention=flex_attention"], "cpu", "GPU"),
        (["model.attention=eager"], "cpu", None),
        (["model.liger=true"], "cpu", "GPU"),
        (["model.liger=false", "model.attention=sdpa"], "cuda", None),
    ],
)
def test_settings_that_cannot_run_on_a_device_are_named(
    world: Path, changes: list[str], device: str, expected: str | None
) -> None:
    model = settings(world, *changes).model
    if expected is None:
        check_model_settings(model, torch.device(device))
        return
    with pytest.raises(ConfigError, match=expected) as error:
        check_model_settings(model, torch.device(device))
    assert changes[0].split("=")[0] in str(error.value)


@pytest.mark.parametrize(
    ("flash_attn", "kernels", "downloads", "kind"),
    [
        (True, True, True, "flash_attention_2"),
        (False, True, True, "kernels-community/flash-attn2"),
        (False, True, False, "sdpa"),  # the hub does not answer, or has no build for this machine
        (False, False, False, "sdpa"),
    ],
)
def test_auto_attention_is_the_best_there_is(
    world: Path, monkeypatch: pytest.MonkeyPatch, flash_attn: bool, kernels: bool, downloads: bool, kind: str
) -> None:
    def is_available(kernels_fallback_ok: bool = False) -> bool:
        return flash_attn or (kernels_fallback_ok and downloads)

    monkeypatch.setattr(attention, "is_flash_attn_2_available", is_available)
    monkeypatch.setattr(attention, "is_kernels_available", lambda: kernels)
    monkeypatch.setattr(attention, "find_hub", lambda: True)
    model = settings(world, "model.dtype=bfloat16").model
    assert attention.attention_kind(model, torch.device("cuda")) == kind
    assert attention.attention_kind(model, CPU) == "sdpa"
    assert attention.attention_kind(settings(world).model, torch.device("cuda")) == "sdpa"  # float32
    assert attention.has_flash_attention() == (flash_attn or kernels)


def test_our_folder_kernels_is_not_the_package() -> None:
    """transformers looks for a module of that name, which the repository's root has, without a distribution."""
    try:
        metadata.version("kernels")
    except metadata.PackageNotFoundError:
        assert not attention.is_kernels_available()


def test_a_setting_that_cannot_run_is_reported_before_data_and_model_are_loaded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["model.attention=flex_attention", "data.train=/nowhere.jsonl", f"output={tmp_path / 'run'}"]
    assert main(["train", str(world), *asked]) == 2
    assert "flex_attention" in capsys.readouterr().err


def test_a_run_can_start_from_adapters(world: Path, tmp_path: Path) -> None:
    """The run starts from their merged weights, and its own new adapters leave these frozen."""
    config = settings(world, LORA)
    with_signal(load_policy(config, None, CPU)).save_pretrained(tmp_path)
    again = settings(world, LORA, f"model.path={tmp_path}")
    model = load_policy(again, None, CPU)
    (batch,) = batches(packed=True)
    expected = Policy(load_model(str(tmp_path), config.model, CPU), config).logprobs(batch)
    assert torch.equal(Policy(model, again).logprobs(batch), expected)
    with model.disable_adapter():
        assert torch.equal(Policy(model, again).logprobs(batch), expected)


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
