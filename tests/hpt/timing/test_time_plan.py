"""The plan of time of whole recipes: what it prints, what changes it, and the committed plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hpt
from bench.commands import plans as bench
from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.memory.plan import plan_stages
from hpt.timing import StepTime, TimePlan, make_time_plan, speedups
from hpt.timing.plan import DAY, EVAL_QUESTIONS

RECIPE = "qwen2.5-math-1.5b-1x80gb"


def planned(*settings: str, recipe: str = RECIPE, response_tokens: int | None = None) -> TimePlan:
    return make_time_plan(plan_stages(load_config(recipe, list(settings))), response_tokens=response_tokens)


def step(*settings: str, recipe: str = RECIPE, response_tokens: int | None = None) -> StepTime:
    return planned(*settings, recipe=recipe, response_tokens=response_tokens).stages[0]


def test_phases_add_up_to_the_run() -> None:
    plan = planned()
    (found,) = plan.stages
    assert found.seconds == sum(found.phases.values())
    assert plan.days == pytest.approx(500 * found.seconds / DAY)
    assert found.steps_per_day * found.seconds == pytest.approx(DAY)
    assert found.generated == pytest.approx(128 * 8 * 2048, rel=0.02)
    assert found.trained == found.generated + 128 * 8 * 256
    assert found.generated_per_second == found.generated / found.phases["rollout"]


def test_the_card_and_the_lengths_decide() -> None:
    base = step()
    assert base.machine.name == "H100"
    slower = step("hardware.gpu=A100-80")
    assert slower.phases["train"] == pytest.approx(base.phases["train"] * 989 / 312, rel=0.1)
    assert step(response_tokens=4096).phases["rollout"] > 1.8 * base.phases["rollout"]
    with pytest.raises(hpt.HptError, match="response_tokens = 9000: must be a whole number from 1 to"):
        step(response_tokens=9000)


def test_continuous_batches_do_not_wait_for_the_longest_response() -> None:
    by_transformers = ["rollout.engine=transformers", "rollout.batch_size=32"]
    fixed, continuous = step(*by_transformers), step(*by_transformers, "rollout.batching=continuous")
    # Mean lengths of 2,048 under a limit of 8,192, which nearly every batch of 32 comes close to.
    assert continuous.phases["rollout"] < 0.5 * fixed.phases["rollout"]
    assert continuous.phases["train"] == fixed.phases["train"]


def test_probing_is_counted_as_if_every_question_went_on() -> None:
    plan = planned("rollout.probe=4")
    assert plan.seconds == planned().seconds
    assert any(line.startswith("rollout.probe") for line in plan.assumptions)


def test_sft_generates_nothing_and_trains_on_demonstrations() -> None:
    found = step("method=sft")
    assert found.phases["rollout"] == found.phases["verify"] == found.generated == 0
    assert found.trained == pytest.approx(128 * (2048 + 256), rel=0.05)


def test_each_stage_has_its_own_step() -> None:
    plan = planned("stages=[{method: sft, steps: 100}, {method: grpo}]")
    sft, grpo = plan.stages
    assert plan.seconds == pytest.approx(100 * sft.seconds + 400 * grpo.seconds)
    assert sft.seconds < grpo.seconds


def test_eight_gpus_share_the_questions() -> None:
    alone, eight = step(), step(recipe="qwen2.5-math-1.5b-8x80gb")
    assert eight.generated == pytest.approx(alone.generated, rel=0.05)
    assert alone.phases["train"] / 9 < eight.phases["train"] < alone.phases["train"] / 5


def test_evaluations_are_spread_over_the_steps() -> None:
    shared = step("eval.every=100", "data.eval=held_out.jsonl").phases["evaluation"]
    # Six evaluations in 500 steps, each of EVAL_QUESTIONS responses; a step has 1,024, of the same lengths.
    assert 0 < shared < step().phases["rollout"] * 6 / 500
    assert EVAL_QUESTIONS < 1024


def test_verification_counts_where_it_takes_longer_than_the_rollouts() -> None:
    assert step().phases["verify"] < 0.01
    # 1,024 responses by one worker: 5 ms each, and a hundredth of them takes the time limit.
    slow = step("verify.workers=1", "verify.timeout=100")
    assert slow.phases["verify"] == pytest.approx(1024 * (0.005 + 1) - slow.phases["rollout"])


def test_the_change_that_helps_fits_and_is_as_good_as_said() -> None:
    config = load_config("qwen2.5-math-1.5b-1x80gb", ["rollout.vllm.memory_share=0.2"])
    plans = plan_stages(config)
    time = make_time_plan(plans)
    best, *others = speedups(plans, time)
    assert best.kind == "settings"
    assert all(other.kind != "settings" for other in others)
    changed = plan_stages(load_config(RECIPE, ["rollout.vllm.memory_share=0.2", *map("=".join, _texts(best.change))]))
    assert changed[0].fits
    assert make_time_plan(changed).seconds == pytest.approx((1 - best.gain) * time.seconds, rel=1e-6)
    too_large = plan_stages(load_config(RECIPE, ["hardware.gpu_memory_gib=10"]))
    assert speedups(too_large, time) == []


def _texts(change: dict[str, object]) -> list[tuple[str, str]]:
    return [(key, str(value).lower()) for key, value in change.items()]


def test_the_command_says_how_long(capsys: pytest.CaptureFixture[str], world: Path) -> None:
    assert main(["plan", str(world), "hardware.gpu=L4", "--response-tokens", "3"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Time of a step of hpt on L4" in shown
    assert "responses of 3 tokens on average (--response-tokens)" in shown
    assert "steps a day" in shown
    assert "fits into 22.4 GiB" in shown


def test_a_cpu_is_measured(world: Path) -> None:
    plan = hpt.plan(world, device="cpu")
    assert "measured just now" in str(plan)
    assert plan.time.stages[0].phases["rollout"] > 0


COMMITTED = {row["recipe"]: row for row in json.loads(bench.RESULTS.with_suffix(".json").read_text())}


def test_the_committed_plans_have_every_recipe() -> None:
    assert list(COMMITTED) == bench.recipes()
    rows = list(COMMITTED.values())
    assert bench.page(rows) == bench.RESULTS.with_suffix(".md").read_text()
    assert bench.with_table(bench.PAGE.read_text(), rows) == bench.PAGE.read_text(), "run: python -m bench plans"


def test_a_committed_plan_is_what_the_code_says() -> None:
    assert bench.planned(RECIPE) == COMMITTED[RECIPE]


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.recipes())
def test_all_committed_plans_are_what_the_code_says(name: str) -> None:
    assert bench.planned(name) == COMMITTED[name]
