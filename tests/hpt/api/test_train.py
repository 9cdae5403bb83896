"""hpt.train: a recipe or settings, data and functions as objects, resuming, interruptions; nothing is left behind."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import hpt
from hpt.config.recipe import load_config
from hpt.support.messages import LOGGER

Metrics = Callable[[Path], list[dict[str, Any]]]


def records(world: Path, name: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.parent / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> hpt.Run:
    return hpt.train(world, output=tmp_path_factory.mktemp("api") / "run", steps=3)


def test_a_run_has_its_folder_metrics_and_checkpoint(finished: hpt.Run) -> None:
    assert finished.finished
    assert [line["step"] for line in finished.metrics] == [0, 1, 2, 3]
    assert finished.checkpoint == finished.folder / "checkpoints" / "step-000003"
    assert repr(finished) == f"Run({str(finished.folder)!r}, step 3 of 3)"
    assert finished.config["steps"] == 3
    assert repr(hpt.Run(finished.folder)) == repr(finished)
    with pytest.raises(hpt.HptError, match=r"no run here \(config.yaml is missing\)"):
        hpt.Run(finished.folder / "nowhere")


def test_settings_alone_with_objects_train_as_the_recipe_does(
    world: Path, finished: hpt.Run, tmp_path: Path, metrics_of: Metrics
) -> None:
    recipe = yaml.safe_load(world.read_text())
    settings = recipe | {
        "model": recipe["model"]["path"],
        "data": recipe["data"] | {"train": records(world), "eval": records(world, "eval")},
        "output": tmp_path / "run",
        "steps": 3,
    }
    run = hpt.train(**settings)
    assert metrics_of(run.folder) == metrics_of(finished.folder)
    assert run.config["data"]["train"] == f"{tmp_path}/run/data/train.jsonl"
    resumed = hpt.train(resume=run.folder, steps=4)
    assert resumed.step == 4
    with pytest.raises(hpt.HptError, match="a resumed run keeps its data"):
        hpt.train(resume=run.folder, steps=5, data=records(world))


def test_a_run_that_exists_keeps_its_data(world: Path, finished: hpt.Run) -> None:
    data = finished.folder / "data" / "train.jsonl"
    with pytest.raises(hpt.HptError, match="already holds a run"):
        hpt.train(world, output=finished.folder, data={"train": records(world)})
    assert not data.exists()


def half(P: float) -> tuple[float, float]:
    return (0.5, 0.5)


def test_a_function_may_be_an_object(world: Path, tmp_path: Path) -> None:
    def never(P: float) -> tuple[float, float]:
        return (0.0, 1.0)

    importable = hpt.train(world, output=tmp_path / "a", steps=1, gate={"kind": "function", "function": half})
    assert importable.config["gate"]["function"].endswith("test_train:half")
    run = hpt.train(world, output=tmp_path / "b", steps=1, gate={"kind": "function", "function": never})
    assert run.config["gate"]["function"] == "__main__:never"
    assert run.metrics[-1]["gate/sft_share"] == 1.0
    code = (
        "import sys; from hpt.commands.main import main; sys.exit(main(['train', '--resume', sys.argv[1], 'steps=2']))"
    )
    done = subprocess.run([sys.executable, "-c", code, run.folder], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "gate.function = '__main__:never': the function 'never' was given in Python" in done.stderr
    assert "hpt.train(resume=FOLDER, gate={'function': ...})" in done.stderr
    assert hpt.train(resume=run.folder, steps=2, gate={"function": never}).step == 2


def test_a_resumed_run_does_not_take_another_runs_function_of_the_same_name(world: Path, tmp_path: Path) -> None:
    def rewarding(value: float) -> Callable[..., list[float]]:
        def score(completions: list[str], **columns: Any) -> list[float]:
            return [value] * len(completions)

        return score

    one = hpt.train(world, output=tmp_path / "one", steps=1, rewards=[rewarding(1.0)])
    hpt.train(world, output=tmp_path / "two", steps=1, rewards=[rewarding(2.0)])
    with pytest.raises(hpt.HptError, match="the function 'score' was given in Python"):
        hpt.train(resume=one.folder, steps=2)
    resumed = hpt.train(resume=one.folder, steps=2, rewards=[rewarding(1.0)])
    assert resumed.metrics[-1]["reward/mean"] == 1.0


def test_a_resumed_run_keeps_its_training_data(finished: hpt.Run) -> None:
    for data in ("other.jsonl", {"train": "other.jsonl"}):
        with pytest.raises(hpt.HptError, match="a resumed run keeps its data"):
            hpt.train(resume=finished.folder, steps=9, data=data)


def test_two_runs_at_once_are_refused(world: Path, tmp_path: Path) -> None:
    def gate(P: float) -> tuple[float, float]:
        with pytest.raises(hpt.HptError, match="another run trains in this process"):
            hpt.train(world, output=tmp_path / "inner", steps=1)
        return (1.0, 0.0)

    hpt.train(world, output=tmp_path / "outer", steps=1, gate={"kind": "function", "function": gate})


def test_objects_of_pandas_and_numpy_are_taken(world: Path, tmp_path: Path) -> None:
    pandas, numpy = pytest.importorskip("pandas"), pytest.importorskip("numpy")
    betas = numpy.array([0.5, 0.25])
    run = hpt.train(
        world,
        output=tmp_path / "run",
        steps=numpy.int64(1),
        data=pandas.DataFrame(records(world)),
        optimizer={"betas": betas},
    )
    assert len((run.folder / "data" / "train.jsonl").read_text().splitlines()) == 24
    assert load_config(run.folder / "config.yaml").optimizer.betas == (0.5, 0.25)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 0}, "steps = 0: input should be greater than or equal to 1"),
        ({"gate": {"function": lambda P: (1, 0)}}, "has no name that a recipe could record"),
        ({"rewards": [(half, 1, 2)]}, r"allowed are a function and \(function, weight\)"),
        ({"data": [{"prompt": "1+1=", "answer": {1, 2}}]}, "record 1.*JSON"),
        ({"resume": "somewhere"}, "a run keeps its recipe"),
        ({"data": 3}, "the data is 3; allowed: a list of dicts"),
        ({"seed": torch.tensor([1, 2])}, r"seed = \[1, 2\]: input should be a valid integer"),
        ({"model": torch.nn.Linear(1, 1)}, r"model = Linear.*: an object; allowed is what a recipe may have"),
        ({"rewards": [torch.nn.Linear(1, 1)]}, r"Linear.* is a model; call it in a function"),
        ({"optimizer": {"lr": object()}}, r"optimizer.lr = <object.*: an object"),
        ({"recipe": {"steps": 3}}, r"recipe = \{'steps': 3\}: allowed are a text and a Path"),
    ],
)
def test_wrong_settings_are_named(world: Path, tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(hpt.HptError, match=expected):
        hpt.train(**{"recipe": world, "output": tmp_path / "run", **settings})


def test_nothing_given_is_an_error() -> None:
    with pytest.raises(hpt.HptError, match="needs a recipe, settings, or resume=FOLDER"):
        hpt.train()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_behind(world: Path, tmp_path: Path, finished: hpt.Run) -> None:
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    before = descriptors(), threading.active_count(), LOGGER.handlers[:], LOGGER.level, logging.root.handlers[:]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    hpt.train(world, output=tmp_path / "run", steps=1, threads=threads + 1)
    assert torch.equal(torch.rand(3), expected)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.get_num_threads() == threads
    assert before == (
        descriptors(),
        threading.active_count(),
        LOGGER.handlers[:],
        LOGGER.level,
        logging.root.handlers[:],
    )


def test_it_works_outside_of_the_main_thread(world: Path, tmp_path: Path) -> None:
    runs = []
    thread = threading.Thread(target=lambda: runs.append(hpt.train(world, output=tmp_path / "run", steps=1)))
    thread.start()
    thread.join()
    assert runs[0].finished


def test_ctrl_c_before_the_first_step_stops_at_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpt.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "evaluate", lambda self: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            hpt.train(world, output=tmp_path / "run", steps=9)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "step 0 of 9" in repr(hpt.Run(tmp_path / "run"))


def test_ctrl_c_stops_after_the_step_with_a_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hpt.training.trainer import Trainer

    step = Trainer.step

    def interrupted(self: Trainer, number: int) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest-xdist ignore it
    try:
        run = hpt.train(world, output=tmp_path / "run", steps=9)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (run.step, run.finished, run.checkpoint.name) == (2, False, "step-000002")
    assert f"Stopped after step 2; continue with: hpt train --resume {tmp_path}/run" in capsys.readouterr().err


def test_several_data_sets_are_written_to_several_files(world: Path, tmp_path: Path) -> None:
    first, second = records(world)[:4], records(world)[4:6]
    data = {"train": [{"path": first, "weight": 1.0}, {"path": second, "weight": 2.0}]}
    run = hpt.train(world, output=tmp_path / "run", steps=1, data=data, batch={"questions": 2})
    sources = load_config(run.folder / "config.yaml").data.train_sources
    written = [[json.loads(line)["id"] for line in Path(source.path).read_text().splitlines()] for source in sources]
    assert written == [[record["id"] for record in part] for part in (first, second)]


@pytest.mark.parametrize("finished", [True, False])
def test_only_a_finished_run_is_pushed(
    world: Path, tmp_path: Path, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[Path] = []
    monkeypatch.setattr("hpt.api.export.push_finished_run", pushed.append)
    monkeypatch.setattr("hpt.training.run.start", lambda *_, **__: finished)
    (tmp_path / "run").mkdir()
    shutil.copy(world, tmp_path / "run" / "config.yaml")
    hpt.train(world, output=tmp_path / "run")
    assert pushed == [tmp_path / "run"] * finished
    monkeypatch.setattr("hpt.training.run.resumed_config", lambda *_: load_config(world))
    monkeypatch.setattr("hpt.training.run.resume", lambda *_, **__: finished)
    hpt.train(resume=tmp_path / "run")
    assert pushed == [tmp_path / "run"] * 2 * finished
