"""Out of memory: the error names the phase and what saves memory, and the last checkpoint stays."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.memory.out_of_memory import Phase, memory_phase
from hpt.records.checkpoints import checkpoints
from hpt.support.errors import HptError, RolloutError


@contextmanager
def limited(mib: int) -> Iterator[None]:
    """The system grants this process at most `mib` MiB more than it has now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def recipe(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `world` recipe with a wide model: activations, 2 MB per token, take more than weights (31 MB) and the rest.

    The large ones are above what malloc serves from memory that it has kept.
    """
    folder = tmp_path_factory.mktemp("wide")
    shape = Qwen2Config.from_pretrained(world.parent / "model", intermediate_size=40_000)
    Qwen2ForCausalLM(shape).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((world.parent / "model" / name).read_bytes())
    settings = yaml.safe_load(world.read_text())
    settings["model"]["path"] = str(folder / "model")
    settings["batch"] |= {"questions": 24, "tokens": 64}
    settings["output"] = str(folder / "run")
    settings["eval"] = {"every": 0}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_step_that_does_not_fit(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recipe.parent / "run"
    assert main(["train", str(recipe), "steps=1", "method=sft"]) == 0
    with limited(400):
        assert main(["train", "--resume", str(run), "steps=2", "batch.tokens=100000"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "out of memory in the phase 'train'" in error
    assert "allocate" in error
    for advice in ("batch.tokens=50000", "model.gradient_checkpointing=true", "model.lora", "hpt plan", "--resume"):
        assert advice in error
    assert [path.name for path in checkpoints(run)] == ["step-000001"]
    with limited(400):  # the advice helps
        assert main(["train", "--resume", str(run), "steps=2", "batch.tokens=64"]) == 0
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] == [1, 2]


def test_a_model_that_does_not_fit(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with limited(40):
        assert main(["train", str(recipe), f"output={tmp_path / 'run'}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "out of memory in the phase 'load'" in error
    assert "model.dtype=bfloat16" in error
    assert "--resume" not in error  # there is nothing to resume


@pytest.mark.parametrize(
    ("phase", "kind", "advice", "not_advised"),
    [
        ("rollout", RolloutError, "rollout.batch_size=8", "batch.tokens"),
        ("eval", RolloutError, "rollout.batch_size=8", "batch.tokens"),
        ("train", HptError, "model.gradient_checkpointing=offload", "rollout.batch_size"),
    ],
)
def test_the_advice_fits_the_phase(
    world: Path, phase: Phase, kind: type[HptError], advice: str, not_advised: str
) -> None:
    config = load_config(world, ["model.gradient_checkpointing=true", "model.dtype=bfloat16"])
    with pytest.raises(kind) as error, memory_phase(phase, config):
        torch.empty(2**60)
    assert advice in str(error.value)
    assert not_advised not in str(error.value)
    assert "model.dtype" not in str(error.value)
    assert (type(error.value) is RolloutError) == (kind is RolloutError)


def test_other_errors_pass(world: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_phase("train", load_config(world)):
        torch.zeros(3).view(2)
    with pytest.raises(HptError, match="no memory left"), memory_phase("train", load_config(world)):
        raise MemoryError
