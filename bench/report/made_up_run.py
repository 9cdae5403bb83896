"""Writes the records of a run that never took place: responses as long and as varied as those of a reasoning model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from hpt.records.files import CONFIG, RunRecords

LONG_SHARE = 0.05  # of responses that reach the limit
CHARACTERS, LONG_CHARACTERS = 2_000, 20_000
QUESTIONS = 46_000  # in the data
_SENTENCES = (
    "Let me write the equation as ${a}x^2 - {b}x + {c} = 0$ and look at its discriminant.",
    "So we have $\\frac{{{a}}}{{{b}}} = {c}$, and therefore $x = \\sqrt{{{c}}}$.",
    "Wait, I should check that again: {a} times {b} is {p}, not {c}.",
    "By the law of cosines, \\[ c^2 = {a}^2 + {b}^2 - 2 \\cdot {a} \\cdot {b} \\cos\\theta. \\]",
    "Since {a} is coprime to {b}, the order of ${a}$ modulo ${b}$ divides $\\varphi({b})$.",
    "There are $\\binom{{{b}}}{{2}}$ ways to choose two of them, and each is counted {c} times.",
    "This leaves {a} cases; the first of them has no solution because {b} is not a square.",
    "Substituting back, we find $y = {a} - {b} \\cdot {c}$, which is negative.",
    "Hmm, that does not agree with the earlier result of {p}. Let me try another way.",
    "The sum of the first {a} terms is $\\sum_{{k=1}}^{{{a}}} k = \\frac{{{a} \\cdot {b}}}{{2}}$.",
)


def write_run(folder: Path, steps: int, questions: int, n: int) -> None:
    """questions: per step. n: rollouts of each."""
    records = RunRecords(folder)
    config = {"output": str(folder), "method": "hpt", "seed": 0, "steps": steps, "rollout": {"n": n}}
    config |= {"model": {"path": "made-up"}, "data": {"train": "made-up.jsonl"}}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    draw = random.Random("a made-up run")
    for step in range(1, steps + 1):
        skill = 0.15 + 0.5 * step / steps
        rows = [_question(draw, step, skill, n) for _ in range(questions)]
        records.log_rollouts(step, rows)
        records.log(_metrics(step, rows))


def _question(draw: random.Random, step: int, skill: float, n: int) -> dict[str, Any]:
    number = draw.randrange(QUESTIONS)
    own = random.Random(number)  # the same question each time it is drawn
    answer, grade = own.randrange(1000), own.choice(("algebra", "geometry", "number theory"))
    chance = min(0.95, max(0.0, skill + own.uniform(-0.5, 0.5)))
    rollouts = [_rollout(draw, answer, chance) for _ in range(n)]
    scores = [float(status == "correct") for _, status, _ in rollouts]
    mean = sum(scores) / n
    brief = [max(0.0, 1 - len(text) / LONG_CHARACTERS) for text, _, _ in rollouts]
    return {
        **{"step": step, "id": f"math-{number}", "grade": grade, "answer": str(answer)},
        "prompt": f"{_sentences(own, 200)} Find the value of $x$.",
        "responses": [text for text, _, _ in rollouts],
        "scores": scores,
        "rewards": {"brief": brief},
        "total_rewards": [score + 0.2 * short for score, short in zip(scores, brief, strict=True)],
        "advantages": [score - mean for score in scores],
        "statuses": [status for _, status, _ in rollouts],
        "finish_reasons": [reason for _, _, reason in rollouts],
        "lengths": [len(text) // 3 for text, _, _ in rollouts],
        **{"P": mean, "alpha": float(mean > 0), "beta": float(mean == 0), "off": 0.0, "trained": True},
        **({} if mean else {"demonstration": f"{_sentences(own, 900)}\nSo the answer is $\\boxed{{{answer}}}$."}),
    }


def _rollout(draw: random.Random, answer: int, chance: float) -> tuple[str, str, str]:
    """Text, status and the reason of its end."""
    if draw.random() < LONG_SHARE:
        return _sentences(draw, LONG_CHARACTERS)[:LONG_CHARACTERS], "unparsable", "length"
    right = draw.random() < chance
    found = answer if right else draw.randrange(1000)
    text = _sentences(draw, int(draw.gauss(CHARACTERS, CHARACTERS / 4)))
    status = "correct" if right else "incorrect"
    return f"{text}\n\nThe answer is $\\boxed{{{found}}}$.", status, "stop"


def _sentences(draw: random.Random, characters: int) -> str:
    parts: list[str] = []
    length = 0
    while length < characters:
        a, b, c = (draw.randrange(2, 999) for _ in range(3))
        parts.append(draw.choice(_SENTENCES).format(a=a, b=b, c=c, p=a * b))
        parts.append(draw.choice((" ", " ", "\n\n")))
        length += len(parts[-2]) + 1
    return "".join(parts).rstrip()


def _metrics(step: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    scores = [score for row in rows for score in row["scores"]]
    lengths = [length for row in rows for length in row["lengths"]]
    return {
        "step": step,
        **{"reward/sum": sum(scores), "reward/count": len(scores)},
        **{"gate/sft": sum(row["beta"] > 0 for row in rows), "gate/questions": len(rows)},
        **{"response/length_sum": sum(lengths), "response/count": len(lengths)},
        **{"time/rollout": 60.0, "time/train": 30.0, "time/step": 90.0},
    }
