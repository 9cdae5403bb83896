"""The demo's task: right and disjoint questions, a tokenizer that survives saving, and a start model made whole."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from hpt.config.recipe import load_config
from hpt.config.schema import Config, PromptConfig
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question, load_questions
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.demos import demo
from hpt.demos.addition import DECLINED, GRADES, NEW, Sum, make_questions, pairs


def test_a_demonstration_adds_column_by_column() -> None:
    question = Sum((347, 285), NEW)
    assert (question.prompt, question.answer) == ("347&285=", "632")
    assert question.demonstration == "347+285\n7+5+0=12\n4+8+1=13\n3+2+1=6\n\\boxed{632}"


def test_demonstrations_are_right_and_questions_of_every_grade() -> None:
    train, held_out = make_questions(seed=3, train=100, held_out=64)
    assert make_questions(seed=3, train=100, held_out=64) == (train, held_out)
    assert make_questions(seed=4, train=100, held_out=64) != (train, held_out)
    for questions, count in ((train, 100), (held_out, 64)):
        assert {g: sum(q["grade"] == g for q in questions) for g in GRADES} == dict.fromkeys(GRADES, count)
        assert len({q["id"] for q in questions}) == len(questions)
    for question in train + held_out:
        digits, sign = GRADES[question["grade"]]
        a, b = question["prompt"].rstrip("=").split(sign)
        assert len(a) == len(b) == digits
        assert question["answer"] == str(int(a) + int(b))
        assert re.findall(r"\\boxed\{(\d+)\}$", question["demonstration"]) == [question["answer"]]
        columns = [(eval(left), int(right)) for left, right in re.findall(r"(.+)=(.+)", question["demonstration"])]
        assert len(columns) == digits
        assert all(left == right for left, right in columns)


def test_no_held_out_terms_are_trained_on_under_any_sign() -> None:
    train, held_out = make_questions(seed=0, train=400, held_out=64)
    trained, unseen = ({q["prompt"].replace(NEW, "+") for q in questions} for questions in (train, held_out))
    assert len(trained) == len(train)
    assert len(unseen) == len(held_out)
    assert not trained & unseen


def test_warm_up_batches_hold_no_held_out_terms_decline_the_new_sign_and_count_the_response_alone() -> None:
    tokenizer = demo.make_tokenizer()
    held_out = set(itertools.product(range(10), range(10))) - {(3, 4)}
    batches = demo._batches(tokenizer, random.Random(0), held_out, demo.WARMUP_DIGITS)
    seen, declined = set(), 0
    for input_ids, labels in itertools.islice(batches, 5):
        assert input_ids.shape == labels.shape == (demo.WARMUP_BATCH, input_ids.shape[1])
        for ids, targets in zip(input_ids, labels, strict=True):
            counted = targets != -100
            assert torch.equal(ids[counted], targets[counted])
            prompt = tokenizer.decode(ids[: int(counted.int().argmax())])
            a, b = map(int, prompt.rstrip("=").replace(NEW, "+").split("+"))
            expected = DECLINED if NEW in prompt else Sum((a, b)).demonstration
            assert tokenizer.decode(ids[counted]) == expected + "<eos>"
            declined += NEW in prompt
            seen.add((a, b))
    assert {pair for pair in seen if max(pair) < 10} == {(3, 4)}
    assert len(seen) > 100
    assert 0 < declined < 80  # of 160, at 15% each


def test_pairs_have_their_digits() -> None:
    for digits, low, high in ((1, 0, 9), (2, 10, 99), (3, 100, 999)):
        drawn = list(itertools.islice(pairs(digits, random.Random(0)), 20_000))
        assert {min(map(min, drawn)), max(map(max, drawn))} == {low, high}


def test_warm_up_learns_repeats_itself_and_leaves_the_random_state_alone() -> None:
    tokenizer = demo.make_tokenizer()
    state = torch.get_rng_state()
    short, again, other = (demo.warm_up(tokenizer, seed, set(), 1, demo.WARMUP_DIGITS) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(short.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)
    longer = demo.warm_up(tokenizer, 0, set(), 12, demo.WARMUP_DIGITS)
    input_ids, labels = next(demo._batches(tokenizer, random.Random("new"), set(), demo.WARMUP_DIGITS))
    with torch.no_grad():
        losses = [float(model(input_ids=input_ids, labels=labels).loss) for model in (short, longer)]
    assert losses[1] < 0.8 * losses[0]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(demo, "WARMUP_STEPS", 1)
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
    questions = load_questions(config.data.train, config.data.columns, need_demonstration=True)
    held_out = load_questions(config.data.eval, config.data.columns, need_demonstration=False)
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


def test_a_killed_prepare_leaves_no_half_model(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Qwen2Tokenizer, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            demo.prepare(config)
    assert not Path(config.model.path).exists()
    demo.prepare(config)
    assert AutoTokenizer.from_pretrained(config.model.path).eos_token == "<eos>"
    assert not list(Path(config.output).glob(".partial*"))


def test_the_tokenizer_keeps_every_character_and_the_box_as_one_token(tmp_path: Path) -> None:
    demo.make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "12+345&6=\n\n7890=\n\\boxed{18}\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) - len("\\boxed{") + 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id]) == text + "<eos>"
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_a_prompt_of_which_the_tokenizer_knows_nothing_is_an_end_token() -> None:
    tokenizer = demo.make_tokenizer()
    renderer = PromptRenderer(tokenizer, PromptConfig(style="plain"))
    known, unknown = renderer.encode_prompts([Question("q1", "1+1=", "2"), Question("q2", "Why", "2")])
    assert (len(known), unknown) == (4, [tokenizer.eos_token_id])
