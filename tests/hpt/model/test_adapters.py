"""LoRA and QLoRA: what is trained, saved, resumed, merged and exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_gradients import CPU, LORA, batches, close, gradients, settings, with_signal
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from hpt.commands.main import main
from hpt.model.adapters import ADAPTER_CONFIG
from hpt.model.loading import load_model, load_policy
from hpt.model.policy import Policy
from hpt.records.checkpoints import checkpoints
from hpt.rollout import Sampling, TransformersEngine
from hpt.support.errors import ConfigError, HptError


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

    def test_dropout_is_the_recipes(self, world: Path) -> None:
        model = load_policy(settings(world, LORA, "model.lora.dropout=0.25"), None, CPU)
        found = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p]
        assert found == [0.25] * (2 * 7)  # 2 layers, 7 linear layers each

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
