"""Sample rollouts of a run: questions of its first and last step, with some of their responses."""

from __future__ import annotations

import json
from typing import Any

from hpt.records.files import ROLLOUTS, read_jsonl, step_files
from hpt.report.runs import Run

_MOST_RESPONSES = 4  # per question
_COLUMNS = ("responses", "statuses", "scores", "lengths", "finish_reasons")


def sample_rollouts(run: Run) -> list[dict[str, Any]]:
    """Samples of the first and the last step with rollouts: a question with none, with some and with all right.

    Each has at most `_MOST_RESPONSES` responses, one of each status before a second one.
    """
    files = step_files(run.folder, ROLLOUTS)
    samples: list[dict[str, Any]] = []
    for step in sorted({min(files), max(files)}) if files else []:
        kinds: dict[str, dict[str, Any]] = {}
        for record in read_jsonl(files[step]):
            if all(record.get(column) for column in _COLUMNS):
                right = _right(record)
                kind = "none" if not right else "all" if right == len(record["responses"]) else "some"
                kinds.setdefault(kind, record)
        samples += [_sample(kinds[kind]) for kind in ("none", "some", "all") if kind in kinds]
    return samples


def _sample(record: dict[str, Any]) -> dict[str, Any]:
    responses = [
        {"text": text, "status": status, "score": score, "length": length, "finish": finish}
        for text, status, score, length, finish in zip(*(record[column] for column in _COLUMNS), strict=False)
    ]
    return {
        **{key: record.get(key) for key in ("step", "id", "grade", "answer", "P", "alpha", "beta")},
        "right": _right(record),
        "of": len(responses),
        "prompt": _prompt_text(record.get("prompt")),
        "responses": _one_of_each_status_first(responses)[:_MOST_RESPONSES],
    }


def _right(record: dict[str, Any]) -> int:
    return sum(status == "correct" for status in record["statuses"])


def _one_of_each_status_first(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first response of every status, then the second of every status, and so on."""
    seen: dict[str, int] = {}
    earlier = []  # how many responses of the same status come before each response
    for response in responses:
        count = seen.get(response["status"], 0)
        earlier.append(count)
        seen[response["status"]] = count + 1
    return [responses[index] for index in sorted(range(len(responses)), key=lambda index: earlier[index])]


def _prompt_text(prompt: Any) -> str:
    """A plain prompt as it is; the messages of a chat one below the other."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt
    ):
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    return json.dumps(prompt, ensure_ascii=False)
