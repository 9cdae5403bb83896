"""What a run makes of its model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hpt.config.recipe import load_config
from hpt.data.training_data import make_renderer


def test_rollouts_end_where_the_models_generation_ends(world: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(world.parent / "model", model)
    (model / "generation_config.json").unlink(missing_ok=True)
    config = load_config(world, [f"model.path={model}"])
    alone = make_renderer(config).stop_ids
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert make_renderer(config).stop_ids == [*alone, 7, 9]
