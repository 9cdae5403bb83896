"""The shipped recipes of 1.5B to 8B models fit into the machines that their names say."""

from __future__ import annotations

import pytest

from hpt.config.recipe import load_config, shipped_recipes
from hpt.memory import make_plan

GIB = 2**30
RECIPES = [name for name in shipped_recipes() if name.endswith("gb")]


def test_every_model_has_a_recipe_for_every_machine() -> None:
    models = ("qwen2.5-math-1.5b", "qwen2.5-math-7b", "llama-3.1-8b")
    assert set(RECIPES) == {f"{m}-{machine}" for m in models for machine in ("1x24gb", "1x48gb", "1x80gb", "8x80gb")}


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_fits(name: str) -> None:
    config = load_config(name)
    plan = make_plan(config)
    assert plan.fits, [*plan.problems, plan.peak / GIB]
    assert plan.hardware.gpus == (8 if "8x80" in name else 1)
    assert f"{config.hardware.gpu_memory_gib:g}" == {"24gb": "22", "48gb": "44", "80gb": "78"}[name.rpartition("x")[2]]
    # As in the paper.
    assert (config.batch.questions, config.rollout.n, config.rollout.max_tokens) == (128, 8, 8192)
    assert config.gate.gamma == (2 if "llama" in name else 0)
    assert config.sft.coef == (0.3 if "1.5b" in name else 1.0)
