"""Objectives by name: which presets fit which signal, and functions that a recipe names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import upge
from safetensors.torch import load_file
from upge import presets

from hpt.commands.main import main
from hpt.config.objectives import check_objective, make_objective
from hpt.config.recipe import load_config
from hpt.records.checkpoints import checkpoints
from hpt.support.errors import ConfigError


def fits(signal: str, objective: upge.Objective) -> bool:
    """Whether the parts of an objective make sense for a signal."""
    if signal == "sft":
        return objective.advantage == "one"  # demonstrations have no advantage
    # pi_ref = 1 is for tokens that no known policy sampled: demonstrations trained by off-policy RL.
    return objective.advantage == "given" and (objective.reference == "one") == (signal == "off_policy")


@pytest.mark.parametrize("signal", ["rl", "sft", "off_policy"])
def test_each_signal_takes_the_presets_that_mean_something_for_it(signal: str) -> None:
    for name, preset in upge.PRESETS.items():
        if fits(signal, preset()):
            assert make_objective(signal, name, {}).name == name
        else:
            with pytest.raises(ValueError, match=f"{signal}.objective = '{name}': allowed are .*module:function"):
                make_objective(signal, name, {})
            with pytest.raises(ValueError, match="allowed are"):
                check_objective(signal, name, {})


def test_every_preset_of_upge_is_listed_by_its_name() -> None:
    made = {name for name, value in vars(presets).items() if callable(value) and name in upge.__all__}
    assert set(upge.PRESETS) == made - {"Objective", "Clip", "WeightClip", "Shaping", "SoftGate", "Unmasked"}
    assert all(preset is getattr(upge, name) for name, preset in upge.PRESETS.items())


LOSSES = """
def reinforce(logprobs, batch):
    return -batch.advantages * logprobs


def grpo(logprobs, batch):
    ratio = (logprobs - batch.old_logprobs).exp()
    clipped = ratio.clamp(0.8, 1.2)
    advantages = batch.advantages
    return -(ratio * advantages).minimum(clipped * advantages)


def of_one(logprobs):
    return -logprobs
"""


@pytest.fixture
def losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("losses")
@pytest.mark.parametrize(("function", "preset", "updates"), [("reinforce", "REINFORCE", 1), ("grpo", "GRPO", 2)])
def test_a_run_trains_by_a_function_as_by_the_preset_that_it_spells_out(
    world: Path, tmp_path: Path, function: str, preset: str, updates: int
) -> None:
    trained = {}
    for objective in (f"losses:{function}", preset):
        run = tmp_path / preset / objective.replace(":", "-")
        settings = [f"output={run}", "gate.kind=rl", f"rl={{objective: '{objective}'}}", f"batch.updates={updates}"]
        assert main(["train", str(world), "steps=2", "eval.every=0", "optimizer.lr=3e-3", *settings]) == 0
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        trained[objective] = (line["train/grad_norm"], load_file(checkpoints(run)[-1] / "model.safetensors"))
    (own_norm, own), (norm, weights) = trained.values()
    assert own_norm == pytest.approx(norm, rel=1e-5)
    # AdamW's first updates are of size lr whatever the gradient: where a gradient is nearly 0 its rounding decides.
    differing = sum(int((own[name] - weights[name]).abs().gt(1e-4).sum()) for name in own)
    assert differing < 0.01 * sum(tensor.numel() for tensor in own.values())
    assert all(torch.isfinite(tensor).all() for tensor in own.values())


@pytest.mark.usefixtures("losses")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["rl.objective=losses:nothing"], ["rl.objective = 'losses:nothing'", "has no 'nothing'"]),
        (["rl.objective=losses:of_one"], ["rl.objective", "called with (logprobs, batch)"]),
        (["rl={objective: 'losses:grpo', options: {clip: 1}}"], ["has no 'clip'; allowed: per_token"]),
        (["sft.objective=losses:reinforce", "loss.aggregation=official"], ["sft.objective", '"official"']),
        (["rl.objective=LUFFY"], ["rl.objective = 'LUFFY'", "'REINFORCE'"]),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(world: Path, settings: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(world, settings)
    assert all(part in str(error.value) for part in expected), error.value
