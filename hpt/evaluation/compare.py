"""`hpt compare`: two evaluations of the same questions, question by question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpt.evaluation.estimates import Estimate, bootstrap
from hpt.evaluation.evaluate import RESULTS, read_results, write_json
from hpt.evaluation.significance import permutation_test, sign_test
from hpt.records.files import EVALUATIONS, make_folder, step_files
from hpt.support.errors import HptError
from hpt.support.terminal import plain_table, print_results

Rule = Literal["majority", "any", "avg"]

RUN_CONFIG = "config.yaml"
"""What tells a run's folder."""

IDS_SHOWN = 8
_RULES = {
    "majority": "solved: more than half of its responses are right",
    "any": "solved: at least one of its responses is right",
    "avg": "newly solved, forgotten: its share of right responses rose, fell",
}


@dataclass(frozen=True)
class Pair:
    """One question in both evaluations: right responses of all. benchmark: "" where a folder holds one evaluation."""

    benchmark: str
    id: str
    grade: str | None
    correct_a: int
    n_a: int
    correct_b: int
    n_b: int

    @property
    def difference(self) -> float:
        """Of the shares of right responses, B - A."""
        return self.correct_b / self.n_b - self.correct_a / self.n_a

    def change(self, rule: Rule) -> Literal["newly solved", "forgotten", "solved", "unsolved", "same"]:
        """ "same" is rule avg's only: there is nothing to call solved."""
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
    """What `pairs`, at least one, come to."""

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
        """B - A, with its interval by bootstrap over questions, each drawn with both its results."""
        return bootstrap([pair.difference for pair in self.pairs])

    def changed(self, change: str) -> list[Pair]:
        return [pair for pair in self.pairs if pair.change(self.rule) == change]

    @cached_property
    def p_of_accuracy(self) -> float:
        """Of the difference of accuracies: exact permutation test over questions."""
        unit = math.lcm(*{n for pair in self.pairs for n in (pair.n_a, pair.n_b)})
        return permutation_test(
            [pair.correct_b * (unit // pair.n_b) - pair.correct_a * (unit // pair.n_a) for pair in self.pairs]
        )

    @property
    def p_of_changes(self) -> float:
        """Of newly solved against forgotten: exact sign test (McNemar)."""
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

    def parts(self, key: Callable[[Pair], str | None]) -> dict[str, Comparison]:
        """By `key`, in order of appearance; pairs without one are in no part."""
        names = dict.fromkeys(key(pair) for pair in self.pairs)
        return {
            name: Comparison([pair for pair in self.pairs if key(pair) == name], self.rule) for name in names if name
        }


def run_compare(
    a: Path, b: Path | None, steps: tuple[int | None, int | None], rule: Rule, output: Path | None, console: Console
) -> int:
    """Prints the table and what changed; with `output` writes all of it as JSON.

    steps: of A and of B, each a run's evaluation after that step; None: what the place holds by itself. Without `b`
    the run `a` is compared with itself, by default its first evaluation with its last.
    """
    if b is None:
        b, steps = a, _first_and_last(a, steps)
    comparison = Comparison(load_pairs(a, b, steps), rule)
    sides = [str(side) if step is None else f"{side}, step {step}" for side, step in zip((a, b), steps, strict=True)]
    if rule == "any" and (odd := next((pair for pair in comparison.pairs if pair.n_a != pair.n_b), None)):
        raise HptError(
            f"--solved any: question {odd.id!r} has {odd.n_a} responses in A and {odd.n_b} in B, and more find more; "
            "evaluate both with the same --n, or use majority or avg"
        )
    parts = {name: comparison.parts(key) for name, key in _PARTS.items()}
    print_results(_table(comparison, parts, f"A: {sides[0]}\nB: {sides[1]}"), *_notes(comparison))
    if output:
        make_folder(output.parent)
        numbers = {name: {key: part.numbers() for key, part in found.items()} for name, found in parts.items()}
        questions = [asdict(pair) | {"change": pair.change(rule)} for pair in comparison.pairs]
        everything = {"a": sides[0], "b": sides[1], "rule": rule, "all": comparison.numbers(), **numbers}
        write_json(output, everything | {"per_question": questions})
        console.print(f"All numbers, question by question: {output}", soft_wrap=True)
    return 0


_PARTS: dict[str, Callable[[Pair], str | None]] = {
    "benchmarks": lambda pair: pair.benchmark,
    "grades": lambda pair: None if pair.benchmark else pair.grade,
}


def _table(comparison: Comparison, parts: dict[str, dict[str, Comparison]], title: str) -> Table:
    table = plain_table(title, "", "count", "A", "B", "B - A", "95% interval", "newly\nsolved", "forgotten", "p")
    for found in parts.values():
        for name, part in found.items():
            table.add_row(escape(name), *_cells(part))
    table.add_section()
    table.add_row("all", *_cells(comparison), style="bold")
    return table


def _cells(part: Comparison) -> list[str]:
    mean, low, high = part.difference
    return [
        f"{len(part.pairs):,}",
        f"{part.accuracy_a:.1%}",
        f"{part.accuracy_b:.1%}",
        f"{100 * mean:+.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        f"{len(part.changed('newly solved')):,}",
        f"{len(part.changed('forgotten')):,}",
        _p(part.p_of_accuracy),
    ]


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    for change in ("newly solved", "forgotten"):
        pairs = comparison.changed(change)
        if pairs:
            names = [f"{pair.benchmark} {pair.id}".strip() for pair in pairs[:IDS_SHOWN]]
            more = f" and {len(pairs) - IDS_SHOWN} more" if len(pairs) > IDS_SHOWN else ""
            notes.append(escape(f"{change.capitalize()}: {', '.join(names)}{more}"))
    return [
        "",
        *notes,
        f"({_RULES[comparison.rule]})",
        f"p: of accuracy B - A, by permutation over questions. Newly solved against forgotten, by the sign test: "
        f"p = {_p(comparison.p_of_changes)}",
    ]


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


# ---- reading


def load_pairs(a: Path, b: Path, steps: tuple[int | None, int | None] = (None, None)) -> list[Pair]:
    """The questions of two evaluations side by side; HptError naming examples where they are not the same."""
    found_a, found_b = (_find(side, step) for side, step in zip((a, b), steps, strict=True))
    if found_a.keys() != found_b.keys():
        listed = [", ".join(name or "one evaluation" for name in found) for found in (found_a, found_b)]
        raise HptError(f"A and B hold different benchmarks: {a} has {listed[0]}; {b} has {listed[1]}")
    return [pair for name in found_a for pair in _pair(name, found_a[name], found_b[name])]


def _first_and_last(run: Path, steps: tuple[int | None, int | None]) -> tuple[int, int]:
    """The steps to compare a run with itself at, those that are not given filled in."""
    found = list(step_files(run, EVALUATIONS))
    if len(found) < 2:
        raise HptError(
            f"{run}: to be compared with itself a run needs two evaluations of its training (eval.every), and this has "
            f"{len(found)}; name B, too"
        )
    first, last = steps
    return found[0] if first is None else first, found[-1] if last is None else last


def _find(folder: Path, step: int | None) -> dict[str, Path]:
    """Its results by benchmark; the name of a single evaluation is "".

    A file is an evaluation by itself. A run's is what `hpt eval` wrote into its eval/, else the last of its training.
    """
    if folder.is_file() and step is None:
        return {"": folder}
    if not folder.is_dir():
        raise HptError(f"{folder}: no such folder")
    is_run = (folder / RUN_CONFIG).is_file()
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
            f"{place}: there is no {RESULTS} here or in folders of it; hpt eval MODEL --data DATA --output {place} "
            "writes one"
        )
    return several or {"": single}


def _pair(benchmark: str, path_a: Path, path_b: Path) -> list[Pair]:
    results_a, results_b = read_results(path_a), read_results(path_b)
    for one, path, other in ((results_a, path_a, results_b), (results_b, path_b, results_a)):
        alone = [id for id in one if id not in other]
        if alone:
            raise HptError(
                f"A and B hold different questions: {len(alone)} of {len(one)} in {path} are not in the other, "
                f"such as {_examples(alone)}"
            )
    unlike = [
        id for id, record in results_a.items() if any(record[key] != results_b[id][key] for key in ("prompt", "answer"))
    ]
    if unlike:
        raise HptError(
            f"A and B hold different questions: {len(unlike)} have another prompt or answer under the same id in "
            f"{path_a} and {path_b}, such as {_examples(unlike)} (GPQA's choices are in one order for one --seed)"
        )
    return [
        Pair(benchmark, id, one["grade"], one["correct"], one["n"], results_b[id]["correct"], results_b[id]["n"])
        for id, one in results_a.items()
    ]


def _examples(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:3]))
