"""hpt.demos.adder: the tokenizer, the warm-up batches and the training of the start model."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hpt.config.sections.data import PromptConfig
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.demos import adder
from hpt.demos.addition import DECLINED, NEW, Sum
from hpt.demos.demo import WARM_UP


def test_warm_up_batches_hold_no_held_out_terms_decline_the_new_sign_and_count_only_the_response() -> None:
    tokenizer = adder.make_tokenizer()
    held_out = set(itertools.product(range(10), range(10))) - {(3, 4)}
    batches = adder._batches(tokenizer, random.Random(0), held_out, WARM_UP)
    seen, declined = set(), 0
    for input_ids, labels in itertools.islice(batches, 5):
        assert input_ids.shape == labels.shape == (adder.BATCH_SIZE, input_ids.shape[1])
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


def test_warm_up_batches_with_slips_add_each_column_wrong_with_the_chance_that_was_asked_for() -> None:
    tokenizer = adder.make_tokenizer()
    warm_up = adder.WarmUp(steps=1, digit_shares={2: 1.0}, slips=0.35)
    right = total = 0
    for input_ids, labels in itertools.islice(adder._batches(tokenizer, random.Random(0), set(), warm_up), 40):
        for ids, targets in zip(input_ids, labels, strict=True):
            prompt, response = tokenizer.decode(ids[targets == -100]), tokenizer.decode(targets[targets != -100])
            if NEW not in prompt:
                a, b = map(int, prompt.replace("<pad>", "").rstrip("=").split("+"))
                right += response == Sum((a, b)).demonstration + "<eos>"
                total += 1
    # About 1,090 sums, right with the chance 0.65^2: four standard deviations are 0.06.
    assert right / total == pytest.approx(0.65**2, abs=0.06)


def test_warm_up_learns_repeats_itself_and_leaves_the_random_state_alone() -> None:
    tokenizer = adder.make_tokenizer()
    state = torch.get_rng_state()
    short, again, other = (adder.train_adder(tokenizer, seed, set(), replace(WARM_UP, steps=1)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(short.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)
    longer = adder.train_adder(tokenizer, 0, set(), replace(WARM_UP, steps=12))
    input_ids, labels = next(adder._batches(tokenizer, random.Random("new"), set(), WARM_UP))
    with torch.no_grad():
        losses = [float(model(input_ids=input_ids, labels=labels).loss) for model in (short, longer)]
    assert losses[1] < 0.8 * losses[0]


def test_the_tokenizer_keeps_every_character_and_the_box_as_one_token(tmp_path: Path) -> None:
    adder.make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "12+345&6=\n\n7890=\n\\boxed{18}\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) - len("\\boxed{") + 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id]) == text + "<eos>"
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_a_prompt_of_which_the_tokenizer_knows_nothing_is_an_end_token() -> None:
    tokenizer = adder.make_tokenizer()
    renderer = PromptRenderer(tokenizer, PromptConfig(style="plain"))
    known, unknown = renderer.encode_prompts([Question("q1", "1+1=", "2"), Question("q2", "Why", "2")])
    assert (len(known), unknown) == (4, [tokenizer.eos_token_id])
