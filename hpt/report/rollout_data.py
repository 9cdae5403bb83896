"""Puts the rollouts into the page or, where they are many, into a folder beside it that the page reads on demand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpt.records.files import ROLLOUTS, read_jsonl, step_files
from hpt.report.rollouts import RolloutIndex, pack_texts
from hpt.report.runs import Run
from hpt.support.errors import HptError
from hpt.support.files import folder_atomically, make_folder, write_file_atomically

FOLDER = "report-data"
MOST_IN_PAGE = 20_000_000  # bytes of rollouts/ up to which they are part of the page


@dataclass
class RolloutData:
    """What the page holds. indexes: one per run. texts: of each step, by (run's position, step); else in FOLDER."""

    indexes: list[str]
    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    in_folder: bool = False


def write_rollouts(runs: Sequence[Run], folder: Path, most_in_page: int | None = None) -> RolloutData:
    """Reads all rollouts of the runs, one step at a time. folder: of the page.

    An older FOLDER there is replaced, or removed where the page has all.
    """
    size = sum(path.stat().st_size for run in runs for path in step_files(run.folder, ROLLOUTS).values())
    indexes = [RolloutIndex() for _ in runs]
    data = RolloutData([], in_folder=size > (MOST_IN_PAGE if most_in_page is None else most_in_page))
    if data.in_folder:
        with folder_atomically(folder / FOLDER) as partial:
            for number, step, text in _texts(runs, indexes):
                path = partial / step_file(number, step)
                make_folder(path.parent)
                write_file_atomically(path, f'hptTexts("{number}/{step}","{text}")\n'.encode())
    else:
        data.texts = {(number, step): text for number, step, text in _texts(runs, indexes)}
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    data.indexes = [index.pack(run.name) for index, run in zip(indexes, runs, strict=True)]
    return data


def step_file(number: int, step: int) -> str:
    """The file in FOLDER with the texts of a step; assets/data.js names it the same. number: of the run, from 0."""
    return f"{number}/step-{step:06d}.js"


def _texts(runs: Sequence[Run], indexes: Sequence[RolloutIndex]) -> Iterator[tuple[int, int, str]]:
    for number, (run, index) in enumerate(zip(runs, indexes, strict=True)):
        for step, path in step_files(run.folder, ROLLOUTS).items():
            records = read_jsonl(path)
            try:
                index.add(step, records)
                texts = pack_texts(records)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise HptError(f"{path}: these are no records of rollouts ({error})") from error
            yield number, step, texts
