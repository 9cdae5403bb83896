"""The registry of rollout engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from hpt.config.recipe import load_config
from hpt.config.sections.rollout import RolloutConfig
from hpt.rollout import EngineInputs, TransformersEngine, make_rollout_engine
from hpt.rollout.continuous import ContinuousEngine
from hpt.rollout.engines import ENGINES


def test_every_engine_of_the_schema_is_registered() -> None:
    assert set(ENGINES) == set(get_args(RolloutConfig.model_fields["engine"].annotation))


@pytest.mark.parametrize(("batching", "kind"), [("fixed", TransformersEngine), ("continuous", ContinuousEngine)])
def test_a_recipe_gets_the_engine_it_names(world: Path, batching: str, kind: type) -> None:
    config = load_config(world, ["rollout.engine=transformers", "rollout.batch_size=3", f"rollout.batching={batching}"])
    model = AutoModelForCausalLM.from_pretrained(config.model.path)
    unused: Any = None  # the transformers engine has no use for the longest prompt: using None would fail
    engine = make_rollout_engine(EngineInputs(config, model, torch.device("cpu"), [1], unused, torch.no_grad))
    assert isinstance(engine, kind)
    assert engine.batch_size == 3
    assert engine.stop_ids == [1]
    assert engine.gathered_parameters is torch.no_grad
