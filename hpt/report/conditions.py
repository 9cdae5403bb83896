"""What an evaluation asks and how it samples: only evaluations that agree in both are compared."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Conditions:
    """The conditions of an evaluation.

    data: the name of its file, benchmark or dataset. n: responses per question. variant: above 0 where the same name
    stands for other questions than in an earlier run.
    """

    data: str
    questions: int
    n: int
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    variant: int = 0

    @property
    def name(self) -> str:
        return f"{self.data} (other questions, {self.variant})" if self.variant else self.data

    @property
    def sampling(self) -> str:
        """How the responses are sampled, as far as it is known."""
        parts = [f"n = {self.n}"]
        if self.temperature is not None:
            parts.append("greedy" if self.temperature == 0 else f"temperature {self.temperature:g}")
        if self.top_p is not None and self.top_p < 1 and self.temperature != 0:
            parts.append(f"top-p {self.top_p:g}")
        if self.max_tokens is not None:
            parts.append(f"up to {self.max_tokens:,} tokens")
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"{self.name} ({self.questions:,} questions, {self.sampling})"


def sampling_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Conditions` that say how responses are sampled, of the settings of an evaluation."""
    return {key: settings.get(key) for key in ("temperature", "top_p", "max_tokens")}


def data_name(source: Any) -> str:
    """A short name of what a recipe or `hpt eval` names as data: the last part of a path or of a hub's name.

    A benchmark's file is often test.json in a folder of the benchmark's name: then that, too.
    """
    if not isinstance(source, str):
        return str(source)
    path = Path(source)
    return "/".join(path.parts[-2:]) if path.stem == "test" else path.name


def tell_apart(evaluations: Sequence[tuple[Conditions, Hashable, frozenset[str]]]) -> list[Conditions]:
    """The conditions of evaluations, with another `variant` where equal ones ask other questions.

    evaluations: the conditions, the seed of the run and the keys of the questions. Runs of different seeds may have
    questions of their own, as the demos make them; runs of the same seed may not.
    """
    seen: dict[tuple[Conditions, Hashable], list[frozenset[str]]] = {}
    result = []
    for conditions, seed, keys in evaluations:
        known = seen.setdefault((conditions, seed), [])
        if keys not in known:
            known.append(keys)
        result.append(replace(conditions, variant=known.index(keys)))
    return result
