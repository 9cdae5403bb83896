"""Compares two evaluations of the same questions: what changed, and how likely that is by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hpt.evaluation.evaluate import RESULTS, read_results
from hpt.evaluation.statistics import Estimate, bootstrap, permutation_test, sign_test
from hpt.records.files import CONFIG, EVALUATIONS, step_files
from hpt.support.errors import HptError

Rule = Literal["majority", "any", "avg"]
"""When a question is solved: more than half of its responses are right, or at least one. With "avg", newly solved and
forgotten are the questions whose share of right responses rose or fell."""


@dataclass(frozen=True)
class Pair:
    """One question in evaluations A and B: `correct` of `n` responses are right.

    benchmark: "" where the folder has only one evaluation.
    """

    benchmark: str
    id: str
    grade: str | None
    correct_a: int
    n_a: int
    correct_b: int
    n_b: int

    @property
    def difference(self) -> float:
        """Share of right responses in B minus that in A."""
        return self.correct_b / self.n_b - self.correct_a / self.n_a

    def change(self, rule: Rule) -> Literal["newly solved", "forgotten", "solved", "unsolved", "same"]:
        """The change from A to B. Only the rule "avg" has "same", and neither "solved" nor "unsolved"."""
        if rule == "avg":
            ahead = self.correct_b * self.n_a - self.correct_a * self.n_b
            return "newly solved" if ahead > 0 else "forgotten" if ahead < 0 else "same"
        before, after = (
            2 * correct > n if rule == "majority" else correct > 0
            for correct, n in ((self.correct_a, self.n_a), (self.correct_b, self.n_b))
        )
        if before == after:
            return "solved" if after else "unsolved"
        return "newly solved" if after else "forgotten"


@dataclass(frozen=True)
class Comparison:
    """The numbers of a comparison. pairs: at least one."""

    pairs: Sequence[Pair]
    rule: Rule

    @property
    def accuracy_a(self) -> float:
        return math.fsum(pair.correct_a / pair.n_a for pair in self.pairs) / len(self.pairs)

    @property
    def accuracy_b(self) -> float:
        return math.fsum(pair.correct_b / pair.n_b for pair in self.pairs) / len(self.pairs)

    @cached_property
    def difference(self) -> Estimate:
        """Accuracy of B - A, with its interval by paired bootstrap over questions."""
        return bootstrap([pair.difference for pair in self.pairs])

    def changed(self, change: str) -> list[Pair]:
        return [pair for pair in self.pairs if pair.change(self.rule) == change]

    @cached_property
    def p_of_accuracy(self) -> float:
        """p-value of the difference in accuracy: exact paired permutation test over questions."""
        unit = math.lcm(*{n for pair in self.pairs for n in (pair.n_a, pair.n_b)})
        return permutation_test(
            [pair.correct_b * (unit // pair.n_b) - pair.correct_a * (unit // pair.n_a) for pair in self.pairs]
        )

    @property
    def p_of_changes(self) -> float:
        """p-value of newly solved against forgotten: exact sign test (McNemar)."""
        return sign_test(len(self.changed("newly solved")), len(self.changed("forgotten")))

    def numbers(self) -> dict[str, Any]:
        return {
            "questions": len(self.pairs),
            "accuracy_a": self.accuracy_a,
            "accuracy_b": self.accuracy_b,
            "difference": self.difference._asdict(),
            "newly_solved": len(self.changed("newly solved")),
            "forgotten": len(self.changed("forgotten")),
            "p_of_accuracy": self.p_of_accuracy,
            "p_of_changes": self.p_of_changes,
        }

    def by_benchmark(self) -> dict[str, Comparison]:
        """The comparison of each benchmark, in order of appearance."""
        return self._split([pair.benchmark for pair in self.pairs])

    def by_grade(self) -> dict[str, Comparison]:
        """The comparison of each grade, in order of appearance, of the questions that belong to no benchmark."""
        return self._split([None if pair.benchmark else pair.grade for pair in self.pairs])

    def _split(self, names: Sequence[str | None]) -> dict[str, Comparison]:
        """One comparison per name. names: one per pair; a pair whose name is empty is left out."""
        parts: dict[str, list[Pair]] = {}
        for name, pair in zip(names, self.pairs, strict=True):
            if name:
                parts.setdefault(name, []).append(pair)
        return {name: Comparison(pairs, self.rule) for name, pairs in parts.items()}


def load_pairs(a: Path, b: Path, steps: tuple[int | None, int | None] = (None, None)) -> list[Pair]:
    """The questions of two evaluations, paired by id.

    a, b: results of `hpt eval`, a folder of them, or a run. steps: of a run, the training step after which it was
    evaluated; None is the evaluation in its eval/ by `hpt eval`, else the last one of its training.
    HptError, with examples, where the questions differ.
    """
    found_a, found_b = (_find(side, step) for side, step in zip((a, b), steps, strict=True))
    if found_a.keys() != found_b.keys():
        listed = [", ".join(name or "one evaluation" for name in found) for found in (found_a, found_b)]
        raise HptError(f"A and B hold different benchmarks: {a} has {listed[0]}; {b} has {listed[1]}")
    return [pair for name in found_a for pair in _pair(name, found_a[name], found_b[name])]


def first_and_last_step(run: Path, steps: tuple[int | None, int | None] = (None, None)) -> tuple[int, int]:
    """The first and the last step at which a run was evaluated. `steps` replace them where they are not None."""
    found = list(step_files(run, EVALUATIONS))
    if len(found) < 2:
        raise HptError(
            f"{run}: to compare a run with itself takes two evaluations of its training (eval.every), and this has "
            f"{len(found)}; name B, too"
        )
    first, last = steps
    return found[0] if first is None else first, found[-1] if last is None else last


def _find(folder: Path, step: int | None) -> dict[str, Path]:
    """The files of results by benchmark; the name of a single evaluation is ""."""
    if folder.is_file() and step is None:
        return {"": folder}
    if not folder.is_dir():
        raise HptError(f"{folder}: no such folder")
    is_run = (folder / CONFIG).is_file()
    training = step_files(folder, EVALUATIONS) if is_run else {}
    if step is not None:
        if step not in training:
            known = f"it has those after {', '.join(map(str, training))}" if training else "it has none of its training"
            raise HptError(f"{folder}: there is no evaluation after step {step}; {known}")
        return {"": training[step]}
    place = folder / EVALUATIONS if is_run else folder
    several = {path.parent.name: path for path in sorted(place.glob(f"*/{RESULTS}"))}
    single = place / RESULTS
    if several and single.is_file():
        raise HptError(f"{place} holds an evaluation and folders of others ({', '.join(several)}): name one of them")
    if not several and not single.is_file() and training:
        return {"": training[max(training)]}
    if not several and not single.is_file():
        raise HptError(
            f"{place}: there is no {RESULTS} here or in a folder in it; hpt eval MODEL --data DATA --output {place} "
            "writes one"
        )
    return several or {"": single}


def _pair(benchmark: str, path_a: Path, path_b: Path) -> list[Pair]:
    results_a, results_b = read_results(path_a), read_results(path_b)
    for one, path, other in ((results_a, path_a, results_b), (results_b, path_b, results_a)):
        missing = [id for id in one if id not in other]
        if missing:
            raise HptError(
                f"A and B hold different questions: {len(missing)} of {len(one)} in {path} are not in the other, "
                f"such as {_examples(missing)}"
            )
    changed = [
        id for id, record in results_a.items() if any(record[key] != results_b[id][key] for key in ("prompt", "answer"))
    ]
    if changed:
        raise HptError(
            f"A and B hold different questions: {len(changed)} have another prompt or answer under the same id in "
            f"{path_a} and {path_b}, such as {_examples(changed)} (the order of GPQA's choices depends on --seed)"
        )
    return [
        Pair(benchmark, id, one["grade"], one["correct"], one["n"], results_b[id]["correct"], results_b[id]["n"])
        for id, one in results_a.items()
    ]


def _examples(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:3]))
