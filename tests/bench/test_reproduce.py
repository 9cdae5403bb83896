"""`bench reproduce`: its records, the numbers in its tables, and its runs."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import runs
from bench.commands import reproduce
from bench.reproduction.experiments import Experiments
from bench.reproduction.figures import accuracy, dynamics, questions
from bench.reproduction.outcomes import Answered, Outcome, Trial, by_gamma, by_method
from bench.reproduction.records import Records, read_records
from bench.reproduction.statistics import over_seeds
from bench.reproduction.tables import report
from bench.reproduction.task import CLEAN, START, SUMS, WORD_PROBLEMS, WRONG
from hpt.config.recipe import load_config
from hpt.demos import word_problems
from hpt.support.errors import HptError


def outcome(trial: Trial, *correct: int, accuracy: float = 0.5) -> Outcome:
    line = {
        "step": 1,
        "eval/accuracy": accuracy,
        "reward/mean": 0.5,
        "time/step": 2.0,
        "gate/sft": 1,
        "gate/questions": 4,
        "train/updates": 1,
        "train/tokens": 30,
        "train/rows_sft": 3,
        "train/rows_off_policy": 2,
        "response/length_sum": 1000,
        "entropy/mean": 0.25,
    }
    answers = [
        Answered(f"q{i}", "1-digit" if i % 2 else "2-digit", right, 4, 20 + i) for i, right in enumerate(correct)
    ]
    second = line | {"step": 2, "train/tokens": 0 if trial.method == "hpt" else 30}
    return Outcome(trial, [line, second] if trial.method != START else [], answers)


@pytest.fixture
def outcomes() -> list[Outcome]:
    return [
        outcome(Trial("hpt", (1e-4,), 8, CLEAN), accuracy=0.25),
        outcome(Trial("hpt", (1e-4,), 9, CLEAN), accuracy=0.5),
        outcome(Trial(START, (), 0, CLEAN), 0, 2),
        outcome(Trial(START, (), 1, CLEAN), 0, 0),
        outcome(Trial("hpt", (1e-4,), 0, CLEAN), 4, 4),
        outcome(Trial("sft", (1e-4,), 0, CLEAN), 1, 3),
        outcome(Trial("hpt", (1e-4,), 1, CLEAN), 0, 4),
        outcome(Trial("sft", (1e-4,), 1, CLEAN), 2, 2),
        outcome(Trial("grpo", (1e-4,), 1, CLEAN), 1, 1),
        outcome(Trial("sft", (1e-4,), 0, WRONG), 0, 1),
        outcome(Trial("sft-then-grpo", (1e-4, 3e-4), 0, WRONG), 4, 4),
        outcome(Trial("hpt", (1e-4,), 0, CLEAN, gamma=0.5), 3, 3),
    ]


def test_records_come_back_as_they_were(outcomes: list[Outcome], tmp_path: Path) -> None:
    records = Records(tmp_path / "sums", "Recipe `sums`", ["two cores", "four cores"])
    for each in outcomes:
        records.add(each)
    records.choose({(CLEAN, "sft-then-grpo"): (1e-4, 3e-4)}, [8, 9])
    first = (tmp_path / "sums" / "trials.jsonl.gz").read_bytes()
    read = read_records(tmp_path / "sums")
    assert read.outcomes == {o.trial: o for o in outcomes}
    assert (read.recipe, read.conditions) == ("Recipe `sums`", ["two cores", "four cores"])
    assert read.rates == {(CLEAN, "sft-then-grpo"): (1e-4, 3e-4)}
    assert read.tuning_seeds == {8, 9}
    read.choose({}, [])
    assert (tmp_path / "sums" / "trials.jsonl.gz").read_bytes() == first
    read.now = "six cores"
    assert read.conditions == ["two cores", "four cores"]
    for each in outcomes[:2]:
        read.add(each)
    assert read_records(tmp_path / "sums").conditions == ["two cores", "four cores", "six cores"]


def test_records_of_another_recipe_are_not_mixed_in(tmp_path: Path) -> None:
    Records(tmp_path / "sums", "Recipe `sums` steps=3", []).choose({}, [])
    with pytest.raises(HptError, match="holds records of Recipe `sums` steps=3, not of Recipe `sums` steps=4"):
        reproduce.main(["--task", "sums", "--output", str(tmp_path), "steps=4"])


def test_evaluations_with_another_number_of_samples_are_not_mixed_in(outcomes: list[Outcome], tmp_path: Path) -> None:
    Records(tmp_path / "sums", "Recipe `sums`", []).add(outcomes[2])
    with pytest.raises(HptError, match=r"--n 8: the evaluations recorded in .*sums have n = 4"):
        reproduce.main(["--task", "sums", "--output", str(tmp_path), "--n", "8"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rates", "1e-4", "2e-4"], "must be one of 3.3e-05, 0.0001, .*, 0.0081, got 0.0002"),
        (["--methods", "grpo", "sft-then-grpo"], "sft-then-grpo: its first stage has the learning rate of sft"),
        (["--seeds", "1", "100"], "seed 100: chooses the learning rates"),
        (["stpes=3"], "stpes"),
        (["optimizer.lr=1"], "optimizer.lr=1: optimizer.lr is set by the comparison itself"),
        (["gate={gamma: 1}"], "gate.gamma is set by the comparison itself"),
        (["seed=7"], "seed is set by the comparison itself"),
        (["stages.0.method=sft"], "stages is set by the comparison itself"),
    ],
)
def test_what_cannot_be_run_is_said_before_any_run(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(HptError, match=message):
        reproduce.main(["--task", "sums", "--output", str(tmp_path), "--runs", str(tmp_path), *arguments])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--output", "--runs"])
def test_a_file_in_place_of_a_folder_is_named(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folders = {"--output": tmp_path / "records", "--runs": tmp_path / "runs", option: tmp_path / "file"}
    arguments = [str(part) for pair in folders.items() for part in pair]
    with pytest.raises(HptError, match=rf"cannot create {tmp_path / 'file'}: File exists"):
        reproduce.main(["--task", "sums", *arguments])


def test_a_seed_that_chose_the_rates_is_no_seed_of_the_results(outcomes: list[Outcome], tmp_path: Path) -> None:
    records = Records(tmp_path / "sums", "Recipe `sums`", [])
    records.add(outcomes[0])  # of tuning, seed 8
    records.choose({}, [101])
    for seed in ("8", "101"):
        with pytest.raises(HptError, match=f"--seeds {seed}: chose the learning rates that are recorded in"):
            reproduce.main(
                ["--task", "sums", "--output", str(tmp_path), "--tuning-seeds", "7", "--seeds", "1", seed, "--n", "4"]
            )


def test_redrawing_takes_the_tasks_that_have_evaluations(outcomes: list[Outcome], tmp_path: Path) -> None:
    with pytest.raises(HptError, match="--redraw: no evaluation of word-problems or sums is recorded in"):
        reproduce.main(["--output", str(tmp_path), "--redraw"])
    Records(tmp_path / "word-problems", "Recipe `word-problems`", []).add(outcomes[0])  # of tuning
    records = Records(tmp_path / "sums", "Recipe `sums`", [])
    for each in outcomes[2:6]:
        records.add(each)
    reproduce.main(["--output", str(tmp_path), "--redraw"])
    assert (tmp_path / "sums" / "summary.png").is_file()
    assert not (tmp_path / "word-problems" / "table.md").exists()


def test_redrawing_changes_nothing(tmp_path: Path) -> None:
    records = Records(tmp_path / "sums", "Recipe `sums`", [])
    for trial in (Trial("sft", (1e-4,), 8, CLEAN), Trial("grpo", (1e-4,), 8, CLEAN), Trial("sft", (1e-4,), 0, CLEAN)):
        records.add(outcome(trial, *([1, 2] if trial.seed == 0 else [])))
    reproduce._draw(records, SUMS)
    drawn = {path.name: path.read_bytes() for path in records.folder.iterdir()}
    reproduce.main(["--output", str(tmp_path), "--redraw"])
    assert {path.name: path.read_bytes() for path in records.folder.iterdir()} == drawn


@pytest.mark.parametrize("damage", ["missing", "a flipped byte", "a number"])
def test_records_that_are_not_whole_are_neither_read_nor_overwritten(
    damage: str, outcomes: list[Outcome], tmp_path: Path
) -> None:
    Records(tmp_path / "sums", "Recipe `sums`", []).add(outcomes[2])
    trials = tmp_path / "sums" / "trials.jsonl.gz"
    if damage == "missing":
        (tmp_path / "sums" / "conditions.txt").unlink()
    elif damage == "a number":
        trials.write_bytes(gzip.compress(b"5\n"))
    else:
        content = bytearray(trials.read_bytes())
        content[len(content) // 2] ^= 255
        trials.write_bytes(content)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(HptError, match="its records are not whole"):
        reproduce.main(["--task", "sums", "--output", str(tmp_path)])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_methods_without_demonstrations_and_the_start_model_belong_to_every_condition(outcomes: list[Outcome]) -> None:
    assert {k: len(v) for k, v in by_method(outcomes, CLEAN).items()} == {START: 2, "sft": 2, "grpo": 1, "hpt": 2}
    assert {k: len(v) for k, v in by_method(outcomes, WRONG).items()} == {
        START: 2,
        "sft": 1,
        "grpo": 1,
        "sft-then-grpo": 1,
    }
    assert list(by_gamma(outcomes, CLEAN)) == [0.0, 0.5]


def test_an_interval_over_seeds_is_that_of_student() -> None:
    # Ten times the standard error of 1, 2, 3, 4, 5 is 7.0711, and the quantile of 4 degrees of freedom 2.776.
    assert over_seeds([1, 2, 3, 4, 5]).half_width == pytest.approx(0.70711 * 2.776, rel=1e-4)
    assert over_seeds([1.0, 3.0]).half_width == pytest.approx(12.706)
    assert str(over_seeds([0.25])) == "0.250"


def test_tables_hold_means_over_seeds_paired_differences_questions_and_costs(outcomes: list[Outcome]) -> None:
    text = report(outcomes, "1-digit")
    clean, rest = text.split("## Partly wrong demonstrations")
    wrong, changes = rest.split("## What wrong demonstrations change")
    # seed 0: 8 of 8, seed 1: 4 of 8: a standard deviation of .354, and .25 x 12.706; pass@4 is not shown
    assert "| `hpt` | 0.0001 | 2 | 0.750 ± 3.176 | 0.50 | 1.00 |" in clean
    assert "| start model |  | 2 | 0.125 ± 1.588 | 0.00 | 0.25 |" in clean
    # against sft: +0.5 at seed 0, 0 at seed 1
    assert "| `sft` | +0.250 ± 3.176 | 1 of 2 |" in clean
    assert "| `grpo` | +0.250 | 1 of 1 |" in clean  # one seed has no interval
    # sft solves q1 at seed 0 and both at seed 1; the start model q1 at seed 0; hpt both, then q1
    assert "| `sft` | 1.5 | 0.0 | 1.0 | 0.5 | 0.5 | 20.5 | 0.250 |" in clean
    assert "| start model | 0.5 | 0.0 | 0.0 | 1.0 | 0.0 | 20.5 |  |" in clean
    assert "| `grpo` | 2 | 6 | 60 | 2,000 | 4 |" in clean
    assert "| `hpt` | 1 | 6 | 30 | 2,000 | 4 |" in clean  # the second step had nothing to train on
    assert "| 0.5 | 0.750 | 25.0% |" in clean
    assert "| `hpt` | 0.375 |" in clean  # tuning
    assert "| `sft-then-grpo` | 0.0001, 0.0003 | 1 | 1.000 |" in wrong
    assert "`hpt`" not in wrong
    assert changes.splitlines()[4:] == ["| `sft` | -0.375 | 1 of 1 |"]  # at seed 0: 1 of 8 against 4 of 8


@pytest.mark.parametrize("draw", [accuracy.draw, dynamics.draw, questions.draw])
def test_figures_are_drawn_from_incomplete_outcomes(
    draw: Callable[[list[Outcome], Path], None], outcomes: list[Outcome], tmp_path: Path
) -> None:
    draw(outcomes, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_tuning_goes_on_until_the_best_rate_has_a_worse_one_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(SUMS, methods=("sft", "grpo", "sft-then-grpo"), tuning_seeds=(8, 9))
    records = Records(tmp_path / "records", "", [])
    experiments = Experiments(task, tmp_path, records, jobs=1)
    best_rate = {"sft": 2.7e-3, "grpo": 1e-4, "sft-then-grpo": 8.1e-3}
    trained: list[Trial] = []

    def run(trial: Trial) -> None:
        trained.append(trial)
        records.add(outcome(trial, accuracy=-abs(math.log(trial.rates[-1] / best_rate[trial.method]))))

    monkeypatch.setattr(experiments, "run", run)
    monkeypatch.setattr(experiments, "make_start", lambda _: None)
    experiments.tune([(CLEAN, "sft"), (CLEAN, "grpo")])
    single = set(trained)
    experiments.tune([(CLEAN, "sft"), (CLEAN, "sft-then-grpo")])  # the rate of sft is known
    staged = set(trained) - single
    assert records.rates == {
        (CLEAN, "sft"): (2.7e-3,),
        (CLEAN, "grpo"): (1e-4,),
        (CLEAN, "sft-then-grpo"): (2.7e-3, 8.1e-3),
    }
    rates = {method: sorted({t.rates[-1] for t in single if t.method == method}) for method in ("sft", "grpo")}
    assert rates == {"sft": [3e-4, 9e-4, 2.7e-3, 8.1e-3], "grpo": [3.3e-5, 1e-4, 3e-4, 9e-4]}
    assert {trial.rates[0] for trial in staged} == {2.7e-3}
    assert {trial.seed for trial in single} == {8, 9}
    assert len(trained) == len(set(trained))


def test_a_first_stage_has_the_rate_that_is_best_where_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SFT alone is best at 9e-4 in the end, and at 1e-4 in the middle of its run."""
    records = Records(tmp_path / "records", "", [])
    experiments = Experiments(replace(SUMS, tuning_seeds=(8,)), tmp_path, records, jobs=1)

    def run(trial: Trial) -> None:
        middle = outcome(trial, accuracy=-abs(math.log(trial.rates[-1] / 1e-4))).metrics[0] | {"step": 2}
        end = outcome(trial, accuracy=-abs(math.log(trial.rates[-1] / 9e-4))).metrics[0] | {"step": 4}
        records.add(Outcome(trial, [middle | {"step": 0, "eval/accuracy": 0.9}, middle, end], []))

    monkeypatch.setattr(experiments, "run", run)
    monkeypatch.setattr(experiments, "make_start", lambda _: None)
    experiments.tune([(CLEAN, "sft")])
    experiments.tune([(CLEAN, "sft-then-grpo")])
    assert records.rates == {(CLEAN, "sft"): (9e-4,), (CLEAN, "sft-then-grpo"): (1e-4, 9e-4)}
    assert {trial.rates[0] for trial in records.outcomes if trial.method == "sft"} == {3.3e-5, 1e-4, 3e-4, 9e-4, 2.7e-3}


@pytest.mark.slow
def test_the_command_trains_and_evaluates_and_repeats_nothing(tmp_path: Path, bench: Callable[..., str]) -> None:
    records = Records(tmp_path / "records" / "sums", "Recipe `sums` steps=2 eval.every=0", [])
    records.choose({(CLEAN, "sft"): (1e-4,), (WRONG, "sft"): (1e-4,)}, [100])
    arguments = ["--output", tmp_path / "records", "--runs", tmp_path / "runs", "--seeds", "0", "--n", "2"]
    command = ["reproduce", "--task", "sums", "--methods", "sft", *arguments, "steps=2", "eval.every=0"]
    bench(*map(str, command))
    written = {path.name: path.read_bytes() for path in records.folder.iterdir()}
    assert b"| `sft` | 0.0001 | 1 |" in written["table.md"]
    found = read_records(records.folder)
    assert {trial.method for trial in found.outcomes} == {START, "sft"}
    assert all(len(each.evaluation) == 96 for each in found.outcomes.values())
    bench(*map(str, command))
    assert {path.name: path.read_bytes() for path in records.folder.iterdir()} == written


def test_runs_start_from_the_model_of_the_warm_up_and_leave_no_optimizer_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, recipe: str, settings: Sequence[str]) -> None:
        checkpoint = folder / "checkpoints" / "step-000024"
        if checkpoint.exists():
            return
        given.append((recipe, list(settings)))
        checkpoint.mkdir(parents=True)
        (folder / "metrics.jsonl").touch()
        (checkpoint / "model.safetensors").touch()
        for name in ("trainer_state.pt", "trainer_state-1.pt", "checksums.txt", "fingerprints.json"):
            (checkpoint / name).touch()

    given: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "evaluate", lambda *_: None)
    monkeypatch.setattr(Experiments, "_best_rates", lambda _, trials: (1e-4,))
    task = replace(WORD_PROBLEMS, methods=("sft", "hpt"))
    records = Records(tmp_path / "records", "", [])
    Experiments(task, tmp_path, records, jobs=1).compare()
    trained = set(records.outcomes) - {Trial(START, (), seed, WRONG) for seed in (0, 1)}

    assert given[0] == ("word-problems", list(task.warm_up))
    start = tmp_path / "warm-up" / "checkpoints" / "step-000024"
    assert len(given) == 1 + len(trained)
    Experiments(task, tmp_path / "elsewhere", records, jobs=1).compare()
    assert len(given) == 1 + len(trained)  # what has a record is not run again
    assert all(f"model.path={start}" in settings for _, settings in given[1:])
    assert {trial.seed for trial in trained} == {100, 0, 1}
    lines = (tmp_path / "starts" / "seed1" / "train-wrong.jsonl").read_text().splitlines()
    assert lines == [json.dumps(question) for question in word_problems.make_questions(1, wrong=0.4)[0]]
    left = {path.name for path in (tmp_path / "runs").rglob("step-000024/*")}
    assert left == {"model.safetensors"}  # checksums of files that are gone would make hpt eval refuse the model
    assert len(list((tmp_path / "runs").rglob("model.safetensors"))) == len(trained)


def test_a_run_that_outlives_its_benchmark_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = f"import pathlib, time; time.sleep(0.5); pathlib.Path({str(tmp_path / 'done')!r}).touch()"
    with runs.hold(tmp_path):
        process = subprocess.Popen([sys.executable, "-c", work], close_fds=False)
    with runs.hold(tmp_path):
        assert (tmp_path / "done").exists()
    assert process.wait(10) == 0
    assert f"waiting for the runs in {tmp_path}" in capsys.readouterr().err


def test_a_run_with_other_settings_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    config = load_config("sums", [f"output={tmp_path}", "seed=1"])
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    checkpoint = tmp_path / "checkpoints" / f"step-{config.steps:06}"
    checkpoint.mkdir(parents=True)
    runs.train(tmp_path, "sums", ["seed=1", "checkpoint.every=3"])
    with pytest.raises(HptError, match=r"other settings: seed \(was 1, is 2\); give another folder of runs"):
        runs.train(tmp_path, "sums", ["seed=2"])


def test_start_models_are_made_one_after_another_and_a_trial_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights are drawn from the random state that threads share."""
    experiments = Experiments(SUMS, tmp_path, Records(tmp_path / "records", "", []), jobs=2)
    started, run = [], []
    monkeypatch.setattr(experiments, "make_start", lambda seed: started.append((seed, threading.current_thread())))
    monkeypatch.setattr(experiments, "run", run.append)
    trials = [Trial("sft", (1e-4,), seed, CLEAN) for seed in (3, 1, 3)]
    experiments.complete(trials)
    assert started == [(1, threading.main_thread()), (3, threading.main_thread())]
    assert sorted(run, key=lambda trial: trial.seed) == [trials[1], trials[0]]


def test_a_run_that_fails_ends_the_benchmark_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(HptError, match="this run ended with status 2: hpt train no-recipe output="):
        runs.train(tmp_path / "run", "no-recipe", [])
    command = [sys.executable, "-m", "bench", "reproduce", "--redraw", "--output", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("bench: --redraw: no evaluation of word-problems or sums is recorded in")


def test_points_of_a_curve_are_means_of_steps_that_no_stage_border_divides() -> None:
    lines = [
        {"step": step, "gate/questions": 4, "train/rows_sft": 4}
        if step <= 12
        else {"step": step, "gate/questions": 4, "reward/mean": float(step)}
        for step in range(1, 25)
    ]
    run = Outcome(Trial("sft-then-grpo", (1e-5, 1e-5), 0, WRONG), lines, [])
    del lines[14]["reward/mean"]  # no rollouts in step 15
    points = [(14, 13.5), (16, 16.0), (18, 17.5), (20, 19.5), (22, 21.5), (24, 23.5)]
    assert dynamics._smoothed(run, "reward/mean") == points
    assert dynamics._smoothed(run, dynamics.DEMONSTRATED)[5:7] == [(12, 1.0), (14, 0.0)]
