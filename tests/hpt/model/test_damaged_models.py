"""Models and adapters with missing or damaged files: named by a sentence, and nothing in them is executed."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hpt.config.recipe import load_config
from hpt.model.adapters import ADAPTER_CONFIG, base_model_path
from hpt.model.loading import load_model, load_policy, save_model
from hpt.support.errors import HptError

CPU = torch.device("cpu")
LORA = "model.lora={rank: 4, alpha: 8}"


def test_adapters_without_their_base_model(world: Path, tmp_path: Path) -> None:
    config = load_config(world, [LORA])
    model = load_policy(config, None, CPU)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(saved | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(HptError, match="base model"):
        load_model(str(tmp_path), config.model, CPU)


@pytest.mark.parametrize("damage", ["a short pickle", "an empty pickle", "a number", "an index", "no heads"])
def test_a_damaged_model_is_named(world: Path, tmp_path: Path, damage: str) -> None:
    config = load_config(world, [])
    folder = Path(shutil.copytree(config.model.path, tmp_path / "folder"))
    pickled = folder / "pytorch_model.bin"
    if damage in ("a short pickle", "an empty pickle", "a number"):
        torch.save(5 if damage == "a number" else load_file(folder / "model.safetensors"), pickled)
        (folder / "model.safetensors").unlink()
    if damage == "a short pickle":
        pickled.write_bytes(pickled.read_bytes()[:1000])
    elif damage == "an empty pickle":
        pickled.write_bytes(b"")
    elif damage == "an index":
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    elif damage == "no heads":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"num_attention_heads": 4', '"num_attention_heads": 0'))
    with pytest.raises(HptError, match=rf"model\.path = '{folder}': "):
        load_model(str(folder), config.model, CPU)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"base_model_name_or_path": "x"}'])
def test_a_damaged_adapter_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text(text)
    with pytest.raises(HptError, match=re.escape(str(tmp_path / ADAPTER_CONFIG))):
        base_model_path(tmp_path)


@pytest.mark.parametrize("what", ["model", "adapters to merge", "adapters to train"])
def test_a_pickle_among_the_weights_is_refused_by_a_sentence_and_not_run(
    world: Path, tmp_path: Path, what: str
) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    config = load_config(world, [] if what == "model" else [LORA])
    folder = tmp_path / "folder"
    if what == "model":
        shutil.copytree(config.model.path, folder)
    else:
        save_model(load_policy(config, None, CPU), folder)
    name = "model" if what == "model" else "adapter_model"
    (folder / f"{name}.safetensors").unlink()
    torch.save({"weight": Touch()}, folder / f"{'pytorch_' if what == 'model' else ''}{name}.bin")
    load = (
        partial(load_policy, config, folder)
        if what == "adapters to train"
        else partial(load_model, str(folder), config.model)
    )
    with pytest.raises(HptError, match=r"its weights are a pickle that is broken or holds more than tensors"):
        load(CPU)
    assert not (tmp_path / "executed").exists()
