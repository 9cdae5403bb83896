"""Attention: packed rows, and which implementation runs where."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch
from policy_gradients import CPU, LORA, batches, close, gradients, settings, with_signal

from hpt.commands.main import main
from hpt.model import attention
from hpt.model.loading import check_model_settings, load_policy
from hpt.model.policy import Policy
from hpt.rollout import Sampling, TransformersEngine
from hpt.support.errors import ConfigError


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
