"""The first call of each reward function, before any model is loaded: on a demonstration and on a wrong answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from hpt.config.sections.rewards import VERIFIER
from hpt.data.questions import Question
from hpt.support.errors import RewardError
from hpt.verify.reward_call import TrainerState
from hpt.verify.rewards import Response, RewardFunctions
from hpt.verify.verifier import Verifier

logger = logging.getLogger(__name__)

WRONG_ANSWER = "I do not know."


def try_rewards(
    weights: Mapping[str, float],
    functions: RewardFunctions,
    verifier: Verifier | None,
    question: Question,
    encode: Callable[[str], list[int]],
    state: TrainerState,
) -> None:
    """Calls each reward on the demonstration of `question` (else its answer) and on WRONG_ANSWER, and logs the values.

    weights: of each reward, by name. verifier: None where none is needed. encode: text -> token ids.
    RewardError where a function fails, whatever reward_calls.on_error says.
    """
    kind = "demonstration" if question.demonstration else "answer"
    right = question.demonstration or question.answer
    names = [f"on the {kind} of {question.named}"] if right else []
    names.append(f"on the wrong answer {WRONG_ANSWER!r}")
    texts = [right, WRONG_ANSWER] if right else [WRONG_ANSWER]

    def refuse(name: str, question: Question, count: int, fault: str) -> None:
        form = "strings" if isinstance(question.prompt, str) else "lists of messages"
        raise RewardError(
            f"rewards: {functions.functions[name]!r} {fault}, when it was tried {' and '.join(names)}. "
            f"Prompts and completions are {form}, as the prompts in the data are"
        )

    with functions.calling(state, on_fault=refuse) as calls:
        calls.add(0, question, [Response(text, encode(text)) for text in texts])
        values: dict[str, Any] = calls.results()[0].values
    if VERIFIER in weights and verifier and question.answer is not None:
        values[VERIFIER] = [verdict.score for verdict in verifier.score(texts, [question.answer] * len(texts))]
    for name, weight in weights.items():
        if name in values:
            shown = ", ".join(f"{_shown(value)} {where}" for value, where in zip(values[name], names, strict=True))
            only_recorded = " (only recorded)" if weight == 0 else ""
            logger.info("Reward %s, weight %g%s: %s", name, weight, only_recorded, shown)


def _shown(value: float | None) -> str:
    return "None" if value is None else f"{value:g}"
