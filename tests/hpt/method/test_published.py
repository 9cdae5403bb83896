"""What the published run does that ours does not: a second, unclipped update, and means over micro-batches.

docs/published.md states it; its table and its numbers are checked here against the recipes and the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.data.questions import Question
from hpt.memory.plan import make_plan
from hpt.method.experience import Experience
from hpt.method.gate import ONLY_DEMONSTRATION, ONLY_ROLLOUTS
from hpt.method.micro_batches import padded_batch, rows_of_rank
from hpt.method.rows import Row, Signal, token_rows
from hpt.model.policy import Policy
from hpt.rollout import Rollout
from hpt.support.distributed import World

PAGE = Path(__file__).parents[3] / "docs" / "published.md"
RECIPES = {
    "": ("hpt-published", "qwen2.5-math-7b-8x80gb", []),
    "Llama": ("hpt-published-llama", "llama-3.1-8b-8x80gb", []),
    "LUFFY": ("luffy-published", "qwen2.5-math-7b-8x80gb", ["method=luffy"]),
    "SRFT": ("srft-published", "qwen2.5-math-7b-8x80gb", ["method=srft"]),
}
"""The published recipe of each row of the table, by the word in its first cell, and ours beside it."""


def test_the_published_second_update_has_an_unclipped_ratio_and_the_first_is_on_policy() -> None:
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=29,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = Qwen2ForCausalLM(shape)
    model.generation_config.pad_token_id = 0
    rows = [Row([3, 4, 5, 6, 7], 2, Signal.RL, 0.5, 1.5), Row([3, 4, 8, 9], 2, Signal.RL, 0.25, -2.0)]
    settings = ["loss.entropy_coef=0", "model.dtype=float32"]
    on_policy, published = (
        Policy(model, load_config("hpt-published", [*settings, *more])) for more in (["batch.updates=1"], [])
    )
    assert published.needs_old_logprobs
    assert not on_policy.needs_old_logprobs

    def gradient(policy: Policy) -> torch.Tensor:
        model.zero_grad()
        policy.loss(padded_batch(rows)).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    for row, l in zip(rows, published.logprobs(padded_batch(rows)).split([3, 2]), strict=True):
        row.old_logprobs = l.tolist()
    assert torch.equal(gradient(published), gradient(on_policy))

    # As after a first update: ratios from exp(-2) to exp(2), which PPO's clip would cut.
    for row in rows:
        row.old_logprobs = [l + step for l, step in zip(row.old_logprobs, (-2.0, 0.1, 2.0), strict=False)]
    found = gradient(published)
    model.zero_grad()
    for row in rows:
        logits = model(torch.tensor([row.tokens]), use_cache=False).logits[0, row.prompt_length - 1 : -1]
        l = torch.log_softmax(logits, -1).gather(-1, torch.tensor(row.tokens[row.prompt_length :])[:, None])[:, 0]
        (-row.weight * row.advantage * (l - torch.tensor(row.old_logprobs)).exp()).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_step_with_few_rows_has_fewer_updates(
    world: Path, tmp_path: Path, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    run = tmp_path / "run"
    unclipped = "rl={objective: DrGRPO, options: {clip_low: null, clip_high: null}}"
    settings = ["gate.gamma=2", "batch.updates=2", "batch.rows_per_update=16", unclipped, "eval.every=0", "steps=4"]
    assert main(["train", str(world), f"output={run}", *settings]) == 0
    made = []
    for line in metrics_of(run):
        questions = [json.loads(row) for row in (run / "rollouts" / f"step-{line['step']:06d}.jsonl").open()]
        rows = sum(4 if question["alpha"] else 1 for question in questions)
        assert line["train/updates"] == min(2, ceil(rows / 16))
        assert line["clip/count"] == 0
        made.append(line["train/updates"])
    assert set(made) == {1, 2}


def table_of(title: str) -> list[list[str]]:
    """The cells of the table below the heading of that title."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def value_at(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a config's sections and their values."""
    for name, item in value:
        if hasattr(item, "model_fields"):
            yield from leaves(item, f"{key}{name}.")
        else:
            yield f"{key}{name}", item


def test_every_row_of_the_table_is_what_the_recipes_say_and_no_difference_is_left_out() -> None:
    configs = {
        word: (load_config(published), load_config(ours, changes))
        for word, (published, ours, changes) in RECIPES.items()
    }
    named = set()
    for setting, published, ours, why in table_of("Every setting"):
        if not (key := re.match(r"`([\w.]+)`(?: \((\w+)\))?$", setting)):
            continue
        assert why
        named.add((key[1], key[2] or ""))
        for cell, config in zip((published, ours), configs[key[2] or ""], strict=True):
            value = yaml.safe_load(cell.strip("`"))
            assert value == value_at(config, key[1]), (setting, cell)
    for word, (published, ours) in configs.items():
        theirs = dict(leaves(ours))
        different = {key for key, value in leaves(published) if value != theirs[key]} - {"output"}
        missing = {key for key in different if not {(key, word), (key, "")} & named}
        assert not missing, (word, missing)


@pytest.mark.parametrize("name", [published for published, _, _ in RECIPES.values()])
def test_the_published_recipes_fit_eight_gpus(name: str) -> None:
    plan = make_plan(load_config(name))
    assert plan.fits, plan.problems


def balanced(rows: list[Row], tokens: int) -> list[list[Row]]:
    """As few micro-batches as have `tokens` tokens each, of like sizes: a greedy form of the published partition."""
    parts: list[list[Row]] = [[] for _ in range(ceil(sum(len(row.tokens) for row in rows) / tokens))]
    for row in rows:  # longest first
        min(parts, key=lambda part: sum(len(other.tokens) for other in part)).append(row)
    return parts


def factors(questions: int, share: float, rollout: int, demonstration: int, prompt: int) -> tuple[float, ...]:
    """(SFT, entropy) against RL with our normaliser over the same with theirs, from the rows of one update.

    Theirs: of every micro-batch of each of 8 GPUs the sum over RL's tokens / 8192, the mean over SFT's tokens and the
    mean of all entropies. Every question has signal, and all tokens of a signal have the same loss.
    """
    config = load_config("qwen2.5-math-7b")
    n, longest = config.rollout.n, config.rollout.max_tokens
    experiences = []
    for number in range(questions):
        to_sft = number < share * questions
        experiences.append(
            Experience(
                Question(str(number), "", "", ""),
                [0] * prompt,
                [Rollout([0] * rollout, [], "stop", advantage=1.0) for _ in range(n)],
                ONLY_DEMONSTRATION if to_sft else ONLY_ROLLOUTS,
                [0] * demonstration,
            )
        )
    rows = token_rows(experiences, config)
    ours = {signal: sum(r.weight * r.response_length for r in rows if r.signal == signal) for signal in Signal}
    theirs = dict.fromkeys(Signal, 0.0)
    entropy = 0
    for rank in range(8):
        for part in balanced(rows_of_rank(rows, World(rank, 8)), 32768):
            theirs[Signal.RL] += sum(row.response_length for row in part if row.signal == Signal.RL) / longest
            theirs[Signal.SFT] += any(row.signal == Signal.SFT for row in part)
            entropy += 1
    sft = ours[Signal.SFT] / ours[Signal.RL] * theirs[Signal.RL] / theirs[Signal.SFT]
    return sft, (ours[Signal.SFT] + ours[Signal.RL]) / ours[Signal.RL] * theirs[Signal.RL] / entropy


def test_the_stated_ratios_of_the_coefficients() -> None:
    table = table_of("What a coefficient weighs")
    assert len(table) >= 4
    for cells in table:
        share, rollout, demonstration, sft, entropy = map(float, cells)
        found = factors(64, share, int(rollout), int(demonstration), 100)
        assert found == pytest.approx((sft, entropy), abs=0.051)
