"""The plan of time of whole recipes: what it prints, what changes it, and the committed plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hpt
from bench.commands import plans as bench
from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.config.sections.model import ModelConfig
from hpt.memory.meta_model import ArchitectureNotFound, read_architecture
from hpt.memory.plan import plan_stages
from hpt.support.errors import ConfigError
from hpt.timing import StepTime, TimePlan, make_time_plan, speedups, why_no_speedups
from hpt.timing.plan import DAY, EVAL_QUESTIONS
from hpt.timing.table import speedup_lines
from hpt.timing.transfer import SLEEP_AND_WAKE

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


@pytest.mark.parametrize("given", [9000, 0, True, 300.0, "300"])
def test_wrong_response_tokens_are_refused_before_anything_is_planned(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpt.memory.plan.plan_stages", None)
    with pytest.raises(ConfigError, match=f"response_tokens = {given!r}: must be a whole number from 1 to .* 8192"):
        hpt.plan(RECIPE, response_tokens=given)


def test_a_card_must_have_the_memory_that_is_planned_with() -> None:
    with pytest.raises(ConfigError, match=r"hardware.gpu = 'RTX4090' has 24 GB, and hardware.gpu_memory_gib = 78: "):
        load_config(RECIPE, ["hardware.gpu=RTX4090"])
    config = load_config(RECIPE, ["hardware.gpu=RTX4090", "hardware.gpu_memory_gib=24"])
    assert config.hardware.gpu_memory_gib == 24


def test_stages_are_checked_before_anything_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpt.memory.plan.plan_stages", None)
    for command in (hpt.plan, hpt.train):
        with pytest.raises(ConfigError, match=r"stages.0 \(sft\):\n  rollout.probe = 4 stops where"):
            command(RECIPE, method="sft-then-grpo", rollout={"probe": 4})


def test_a_missing_local_model_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # without a folder "runs"
    monkeypatch.setattr("hpt.memory.plan.plan_stages", None)
    for recipe in ("smollm2", "demo"):
        with pytest.raises(hpt.HptError, match=r"does not exist yet: this recipe's prepare \(hpt.demos"):
            hpt.plan(recipe)
    monkeypatch.undo()
    monkeypatch.setattr("hpt.memory.meta_model.read_model_config", _only_local)
    with pytest.raises(ArchitectureNotFound, match="there is no such file or folder"):
        read_architecture(ModelConfig(path=str(tmp_path / "mine")))


def test_a_folder_whose_config_cannot_be_read_says_why(tmp_path: Path) -> None:
    settings = ModelConfig(path=str(tmp_path))
    with pytest.raises(ArchitectureNotFound, match=r"the folder has no config\.json"):
        read_architecture(settings)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    said = "its config.json cannot be read: .* contains custom code .* only run with model.trust_remote_code=true"
    with pytest.raises(hpt.HptError, match=said):
        read_architecture(settings)
    (tmp_path / "config.json").write_text('{"model_type": "own"}')
    with pytest.raises(hpt.HptError, match=r"its config\.json cannot be read: .*`own`"):
        read_architecture(settings)


def _only_local(*_: object, local_files_only: bool = False, **__: object) -> None:
    assert local_files_only
    raise OSError


def test_continuous_batches_do_not_wait_for_the_longest_response() -> None:
    by_transformers = ["rollout.engine=transformers", "rollout.batch_size=32"]
    fixed, continuous = step(*by_transformers), step(*by_transformers, "rollout.batching=continuous")
    # Mean lengths of 2,048 under a limit of 8,192, which nearly every batch of 32 comes close to.
    assert continuous.phases["rollout"] < 0.5 * fixed.phases["rollout"]
    assert continuous.phases["train"] == fixed.phases["train"]
    assert "the overhead of continuous batching on a GPU is not known" in str(
        planned(*by_transformers, "rollout.batching=continuous").assumptions
    )


def test_probing_generates_all_rollouts_and_trains_on_the_first() -> None:
    plan, without = planned("rollout.probe=4"), step()
    (found,) = plan.stages
    assert found.phases["rollout"] == without.phases["rollout"]
    assert found.trained == pytest.approx(without.trained / 2, rel=0.01)
    assert found.phases["train"] < 0.6 * without.phases["train"]
    assert "rollout.probe: every question goes on to all 8 rollouts and trains on the first 4" in str(plan.assumptions)


def test_probing_is_advised_where_the_recipe_may_probe() -> None:
    gains = {}
    for settings in ([], ["rl.advantage=mean_std"]):
        plans = plan_stages(load_config(RECIPE, settings))
        gains[str(settings)] = [
            each for each in speedups(plans, make_time_plan(plans)) if "rollout.probe" in each.change
        ]
    (advised,) = gains.pop("[]")
    assert (advised.kind, advised.change) == ("variance", {"rollout.probe": 4})
    assert advised.gain == pytest.approx(1 - step("rollout.probe=4").seconds / step().seconds)
    assert not any(gains.values())


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


def test_the_longest_response_of_an_evaluation_bounds_its_time() -> None:
    settings = ["data.eval=held-out.jsonl", "eval.every=50"]
    short, long = (step(*settings, f"eval.max_tokens={tokens}").phases["evaluation"] for tokens in (64, 8192))
    assert short < 0.25 * long


def test_a_critic_is_trained_as_the_policy_is() -> None:
    """PPO with one update needs as many passes as GRPO, and those of the critic: two of training, one of values."""
    ppo, alone = (step(f"method={method}", "batch.updates=1").phases["train"] for method in ("ppo", "grpo"))
    assert 2 * alone < ppo < 2.5 * alone


def test_held_out_questions_are_counted_where_they_are_here(tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"prompt": "1 + 1"}\n\n' * 50)
    counted = planned("eval.every=100", f"data.eval={held_out}")
    assumed = planned("eval.every=100", f"data.eval={tmp_path / 'other.jsonl'}")
    assert counted.stages[0].phases["evaluation"] < 0.7 * assumed.stages[0].phases["evaluation"]
    assert "50 questions in an evaluation, the lines of data.eval" in counted.assumptions
    assert f"{EVAL_QUESTIONS} questions in an evaluation (data.eval is not" in str(assumed.assumptions)


def test_weights_asleep_are_those_of_vllms_own_copy() -> None:
    recipe = "qwen2.5-math-7b-1x24gb"
    sizes = load_config(recipe).rollout.vllm
    assert (sizes.quantization, sizes.sleep_level) == ("nf4", 1)
    asleep, awake = step(recipe=recipe), step("rollout.vllm.sleep_level=0", recipe=recipe)
    moved = asleep.phases["weight sync"] - awake.phases["weight sync"] - SLEEP_AND_WAKE
    assert 4e9 < moved * asleep.machine.host_link / 2 < 7e9  # 7.6e9 weights: 15e9 bytes in 16 bits


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


def test_a_shorter_limit_is_named_with_the_mean_that_gives_its_gain() -> None:
    plans = plan_stages(load_config(RECIPE))
    time = make_time_plan(plans)
    (shorter,) = (each for each in speedups(plans, time) if each.kind == "method")
    assert shorter.change == {"rollout.max_tokens": 4096}
    after = planned("rollout.max_tokens=4096", response_tokens=shorter.response_tokens)
    assert after.seconds == pytest.approx((1 - shorter.gain) * time.seconds, rel=1e-9)
    (line,) = (line for line in speedup_lines([shorter]) if "max_tokens" in line)
    assert f"rollout.max_tokens=4096 --response-tokens {shorter.response_tokens}: {shorter.gain:.0%}" in line


def test_it_says_why_no_change_is_named() -> None:
    too_large = plan_stages(load_config(RECIPE, ["hardware.gpu_memory_gib=10"]))
    time = make_time_plan(too_large)
    assert speedups(too_large, time) == []
    assert why_no_speedups(too_large[0], time) == "What would make it faster is planned for runs that fit only."
    in_stages = hpt.plan(RECIPE, method="sft-then-grpo")
    assert in_stages.speedups == []
    assert "What would make it faster is not planned for runs in stages" in " ".join(str(in_stages).split())


def _texts(change: dict[str, object]) -> list[tuple[str, str]]:
    return [(key, str(value).lower()) for key, value in change.items()]


def test_the_command_says_how_long(capsys: pytest.CaptureFixture[str], world: Path) -> None:
    assert main(["plan", str(world), "hardware.gpu=L4", "--response-tokens", "3"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Time of a step of hpt on L4" in shown
    assert "responses of 3 tokens on average (--response-tokens)" in shown
    assert "steps a day" in shown
    assert "fits into 22.4 GiB" in shown


def test_a_run_that_cannot_work_has_no_time() -> None:
    plan = hpt.plan(RECIPE, rollout={"vllm": {"memory_share": 0.05}})
    assert plan.memory.problems
    assert plan.time is None
    assert "How long a step takes is planned for runs that can work only." in str(plan)


def test_a_cpu_is_measured(world: Path) -> None:
    plan = hpt.plan(world, device="cpu")
    assert "measured just now" in str(plan)
    assert "GPUs" not in str(plan)
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
