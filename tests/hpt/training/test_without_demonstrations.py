"""Questions without a demonstration beside others with one: what a run trains and counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hpt
from hpt.commands.main import main
from hpt.records.checkpoints import checkpoints

Metrics = Callable[[Path], list[dict[str, Any]]]


def records(world: Path) -> list[dict[str, Any]]:
    """Every second one has no demonstration."""
    found = [json.loads(line) for line in (world.parent / "train.jsonl").open()]
    return [record | {"demonstration": None} if number % 2 else record for number, record in enumerate(found)]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"data.train={path}"


def test_metrics_count_what_happened(world: Path, tmp_path: Path) -> None:
    """By hpt.train, of records of which some have no demonstration, an empty text or null."""
    nothing: list[dict[str, Any]] = [{}, {"demonstration": None}, {"demonstration": ""}]
    data = records(world)
    for number, record in enumerate(data):
        if record["demonstration"] is None:
            del record["demonstration"]
            data[number] = record | nothing[number % 3]
    settings: dict[str, Any] = {"gate": {"gamma": 2}, "eval": {"every": 0}, "steps": 3, "output": tmp_path / "run"}
    run = hpt.train(world, data={"train": data, "missing_demonstrations": "rollouts"}, **settings)
    overruled = 0
    for line in run.metrics:
        rows = [json.loads(text) for text in (run.folder / f"rollouts/step-{line['step']:06d}.jsonl").open()]
        few = [row for row in rows if row["P"] <= 2 / 4]
        lacking = [row for row in few if int(row["id"].removeprefix("train-")) % 2]
        assert line["gate/without_demonstration"] == len(lacking)
        assert line["gate/sft"] == line["train/rows_sft"] == len(few) - len(lacking)
        assert all((row["alpha"], row["beta"], "demonstration" in row) == (1, 0, False) for row in lacking)
        overruled += len(lacking)
    assert overruled > 0


def test_sft_trains_as_on_the_questions_that_have_one(world: Path, tmp_path: Path, metrics_of: Metrics) -> None:
    some = write(tmp_path / "half.jsonl", records(world))
    only = write(tmp_path / "only.jsonl", [each for each in records(world) if each["demonstration"]])
    for name, settings in (("some", [some, "data.missing_demonstrations=drop"]), ("only", [only])):
        output = f"output={tmp_path / name}"
        assert main(["train", str(world), output, "method=sft", "eval.every=0", "steps=2", *settings]) == 0
    assert metrics_of(tmp_path / "some") == metrics_of(tmp_path / "only")
    weights = "model.safetensors"
    some_bytes, only_bytes = ((checkpoints(tmp_path / name)[-1] / weights).read_bytes() for name in ("some", "only"))
    assert some_bytes == only_bytes
