"""What a run depends on changes between stop and resume: refused by name, or accepted and recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from hpt.records.checkpoints import checkpoints
from hpt.records.files import CHANGES, METRICS

from .cases import Case, Place, expect
from .processes import Forked
from .world import edit, expect_message, expect_unchanged, finish, json_lines, resume, state_of, train


def cases() -> list[Case]:
    found: list[tuple[str, str, Callable[[Path], object]]] = [
        ("the training data", "train.jsonl", lambda world: edit(world / "train.jsonl", '"7+0="', '"6+1="')),
        ("the held-out data", "eval.jsonl", lambda world: edit(world / "eval.jsonl", '"0+5="', '"5+0="')),
        ("the seed in config.yaml", "seed (was 0, is 1)", lambda world: _setting(world, "seed: 0", "seed: 1")),
        ("lr in config.yaml", "optimizer.lr", lambda world: _setting(world, "lr: 0.001", "lr: 0.5")),
        ("a file of the model", "the files of", lambda world: _file_of_the_model(world)),
        (f"{METRICS} gone", METRICS, lambda world: (world / "run" / METRICS).unlink()),
    ]
    holds = "refused by name and the folder as it was; accepted, it is recorded"
    return [
        *(Case("change", what, holds, partial(_check, said=said, change=change)) for what, said, change in found),
        Case("change", "the number of threads", holds, _threads),
    ]


def _setting(world: Path, before: str, after: str) -> None:
    edit(world / "run" / "config.yaml", before, after)


def _file_of_the_model(world: Path) -> None:
    edit(world / "model" / "config.json", '"use_cache": true', '"use_cache": false')


def _world(place: Place) -> Path:
    """A copy of the world with a run of its own that was stopped after two of its steps."""
    world = place.folder / "world"
    shutil.copytree(place.recipe.parent, world)
    recipe = world / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(place.recipe.parent), str(world)))
    return world


def _check(place: Place, *, said: str, change: Callable[[Path], object]) -> str:
    world = _world(place)
    finish(train(world / "recipe.yaml", world / "run", ["steps=2"]))
    change(world)
    return _refused_then_accepted(world, said, lambda *options: resume(world / "run", "steps=4", *options))


def _threads(place: Place) -> str:
    world = _world(place)
    finish(train(world / "recipe.yaml", world / "run", ["steps=2", "threads=null"]))

    def go_on(*options: str) -> Forked:
        return resume(world / "run", "steps=4", *options, before=lambda: torch.set_num_threads(2))

    return _refused_then_accepted(world, "the number of CPU threads (was 1, is 2)", go_on)


def _refused_then_accepted(world: Path, said: str, go_on: Callable[..., Forked]) -> str:
    run = world / "run"
    before = state_of(run)
    expect_message(go_on(), said, "--accept-changes")
    expect_unchanged(run, before)
    finish(go_on("--accept-changes"))
    (recorded,) = json_lines(run / CHANGES)
    expect(recorded["step"] == 2 and len(recorded["changes"]) == 2, f"{CHANGES} has {recorded}")  # and steps
    expect(checkpoints(run)[-1].name == "step-000004", "the run did not end")
    return "refused; recorded"
