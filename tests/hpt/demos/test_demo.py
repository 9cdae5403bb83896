"""hpt.demos.demo: it prepares what training reads, keeps the files of the user, and leaves no incomplete model."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import load_questions
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.demos import demo
from hpt.demos.addition import GRADES
from hpt.support.errors import ConfigError, HptError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(demo, "WARM_UP", replace(demo.WARM_UP, steps=1))
    return load_config("demo", [f"output={tmp_path / 'run'}"])


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_prepare_makes_what_training_reads_and_nothing_twice(config: Config, tmp_path: Path) -> None:
    demo.prepare(config)
    made = contents(tmp_path)
    demo.prepare(config)
    assert contents(tmp_path) == made

    assert config.data.eval is not None
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"start", "train.jsonl", "eval.jsonl"}
    tokenizer = load_tokenizer(config.model.path)
    renderer = PromptRenderer(tokenizer, config.prompt, eos_token_ids=generation_ends(config.model.path))
    assert renderer.stop_ids == [tokenizer.eos_token_id]
    questions = load_questions(config.data.train, config.data.columns, demonstrations="required")
    held_out = load_questions(config.data.eval, config.data.columns, demonstrations="optional")
    assert {question.grade for question in questions} == {question.grade for question in held_out} == set(GRADES)
    for question, ids in zip(questions, renderer.encode_demonstrations(questions), strict=True):
        assert tokenizer.decode(ids) == f"{question.demonstration}<eos>"
        assert len(ids) <= config.rollout.max_tokens
    for question, ids in zip(held_out, renderer.encode_prompts(held_out), strict=True):
        assert tokenizer.decode(ids) == question.prompt
    assert AutoModelForCausalLM.from_pretrained(config.model.path).num_parameters() == pytest.approx(0.86e6, rel=0.01)


def test_prepare_leaves_the_users_own_files(config: Config) -> None:
    Path(config.output).mkdir()
    Path(config.data.train).write_text(json.dumps({"prompt": "1+1=", "answer": "2"}))
    demo.prepare(config)
    assert len(Path(config.data.train).read_text().splitlines()) == 1


@pytest.mark.parametrize("key", ["model.path", "data.train", "data.eval"])
def test_nothing_is_made_at_a_place_of_the_users_own(tmp_path: Path, key: str) -> None:
    config = load_config("demo", [f"output={tmp_path}/run", f"{key}={tmp_path}/elsewhere/nothing"])
    with pytest.raises(
        ConfigError, match=rf"{key} = .*nothing': there is no such file or folder.*{tmp_path}/run, only"
    ):
        demo.prepare(config)
    assert not (tmp_path / "elsewhere").exists()


def test_a_prepare_that_is_killed_or_fills_the_disk_leaves_no_half_model(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("HPT_CACHE", str(Path(config.output) / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(Qwen2Tokenizer, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            demo.prepare(config)
    assert not Path(config.model.path).exists()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(2):  # as it is saved, and as it is copied from the cache
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # the weights have 3.4 MB
        try:
            with pytest.raises(HptError, match=r"the model cannot be written to .*/start: .*File too large"):
                demo.prepare(config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {path.name for path in Path(config.output).iterdir()} - {"cache"} == {"train.jsonl", "eval.jsonl"}
        demo.prepare(config)
        shutil.rmtree(config.model.path)
    demo.prepare(config)
    assert AutoTokenizer.from_pretrained(config.model.path).eos_token == "<eos>"
    assert not list(Path(config.output).glob(".partial*"))
