"""A run's rollouts as the page reads them: an index of numbers to filter by, and the texts of each step.

Both are zlib data in base64: nothing in them can end a script element, and the page unpacks them by itself.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = float("nan")
_ALIGNMENT = 8  # bytes; typed arrays of a browser begin at multiples of their element's size


class RolloutIndex:
    """Collects the numbers of a run's rollouts, step by step. A draw is a question with its rollouts in one step."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._grades: dict[str, int] = {}
        self._statuses: dict[str, int] = {}
        self._draws: dict[str, array[Any]] = {name: array("I") for name in ("step", "question", "grade", "count")}
        self._draws |= {name: array("f") for name in ("P", "alpha", "beta", "off", "trained")}
        self._rollouts: dict[str, array[Any]] = {name: array("B") for name in ("status", "truncated")}
        self._rollouts |= {"length": array("I")}
        self._rollouts |= {name: array("f") for name in ("score", "reward", "advantage")}
        self._functions: dict[str, array[Any]] = {}

    def add(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds the objects of one rollouts/step-*.jsonl. What an older run does not record counts as unknown."""
        for record in records:
            count = len(record.get("responses") or [])
            self._add_draw(step, record, count)
            self._add_rollouts(record, count)

    def pack(self, name: str) -> str:
        """The index in the form that assets/data.js unpacks. name: of the run."""
        columns: dict[str, array[Any]] = {f"draws.{column}": values for column, values in self._draws.items()}
        columns |= {f"rollouts.{column}": values for column, values in self._rollouts.items()}
        columns |= {f"functions.{function}": values for function, values in self._functions.items()}
        header = {
            "name": name,
            "ids": list(self._ids),
            "grades": list(self._grades),
            "statuses": list(self._statuses),
            "columns": [[column, values.typecode, len(values)] for column, values in columns.items()],
        }
        head = json.dumps(header).encode()
        parts = [_aligned(struct.pack("<II", len(head), 0) + head)]
        parts += [_aligned(values.tobytes()) for values in columns.values()]
        return _packed(b"".join(parts))

    def _add_draw(self, step: int, record: Mapping[str, Any], count: int) -> None:
        grade = record.get("grade")
        numbers = {
            "step": step,
            "question": _place(self._ids, str(record.get("id"))),
            "grade": _place(self._grades, "" if grade is None else str(grade)),
            "count": count,
            "P": _number(record.get("P")),
            "alpha": _number(record.get("alpha")),
            "beta": _number(record.get("beta")),
            "off": _number(record.get("off", 0.0)),
            "trained": float(record.get("trained", True)),
        }
        for name, value in numbers.items():
            self._draws[name].append(value)

    def _add_rollouts(self, record: Mapping[str, Any], count: int) -> None:
        statuses = _list(record.get("statuses"), count)
        finish_reasons = _list(record.get("finish_reasons"), count)
        self._rollouts["status"].extend(_place(self._statuses, str(status or "not judged")) for status in statuses)
        self._rollouts["truncated"].extend(reason == "length" for reason in finish_reasons)
        self._rollouts["length"].extend(length or 0 for length in _list(record.get("lengths"), count))
        scores = [_number(score) for score in _list(record.get("scores"), count)]
        self._rollouts["score"].extend(scores)
        self._rollouts["reward"].extend(_rewards(record, scores))
        self._rollouts["advantage"].extend(map(_number, _list(record.get("advantages"), count)))
        before = len(self._rollouts["score"]) - count
        for name, values in (record.get("rewards") or {}).items():
            column = self._functions.setdefault(str(name), array("f"))
            column.extend([UNKNOWN] * (before - len(column)))
            column.extend(map(_number, _list(values, count)))
        for column in self._functions.values():
            column.extend([UNKNOWN] * (before + count - len(column)))


def pack_texts(records: Sequence[Mapping[str, Any]]) -> str:
    """What is read of a step's questions and rollouts, in the order of the index."""
    texts = [
        {
            "prompt": prompt_text(record.get("prompt")),
            "answer": None if record.get("answer") is None else str(record["answer"]),
            "demonstration": None if record.get("demonstration") is None else prompt_text(record["demonstration"]),
            "responses": [str(response) for response in record.get("responses") or []],
        }
        for record in records
    ]
    return _packed(json.dumps(texts).encode())


def prompt_text(prompt: Any) -> str:
    """A plain prompt as it is; the messages of a chat one below the other."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt
    ):
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    return json.dumps(prompt, ensure_ascii=False)


def _rewards(record: Mapping[str, Any], scores: list[float]) -> list[float]:
    """What RL was given; older runs record only its parts."""
    if record.get("total_rewards"):
        return [_number(reward) for reward in _list(record["total_rewards"], len(scores))]
    penalties = record.get("overlong") or [0.0] * len(scores)
    return [score + _number(penalty) for score, penalty in zip(scores, _list(penalties, len(scores)), strict=True)]


def _list(values: Any, count: int) -> list[Any]:
    """`values`, cut or filled up with None to `count`."""
    values = list(values or [])[:count]
    return values + [None] * (count - len(values))


def _number(value: Any) -> float:
    return UNKNOWN if value is None else float(value)


def _place(known: dict[str, int], name: str) -> int:
    return known.setdefault(name, len(known))


def _aligned(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()
