"""Demonstrations whose final answer is wrong are found, in a sample or in all, and the result is remembered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hpt.config.sections.rollout import VerifyConfig
from hpt.data.questions import Question
from hpt.verify import make_verifier
from hpt.verify.demonstrations import check_demonstrations, remembered_check
from hpt.verify.verdict import Verdict
from hpt.verify.verifier import Verifier


def questions(count: int = 6) -> list[Question]:
    """Every third has a wrong demonstration; one has none, one no answer, and one an answer that cannot be used."""
    right = [Question(f"q{n}", "", str(n), rf"so it is \boxed{{{n + (n % 3 == 2)}}}") for n in range(count)]
    return [
        *right,
        Question("none", "", "1"),
        Question("open", "", None, "\\boxed{1}"),
        Question("bad", "", "\\frac{", "1"),
    ]


def test_wrong_demonstrations_are_found_and_what_cannot_be_verified_is_left_out() -> None:
    with make_verifier(VerifyConfig(workers=1)) as verifier:
        result = check_demonstrations(verifier, questions())
        assert (result.possible, result.checked) == (7, 6)
        assert result.refused == {"q2": "incorrect", "q5": "incorrect"}
        assert result.summary == (
            "the verifier refuses the final answer of 2 of 6 checked (of 7) demonstrations: 2 incorrect; "
            "questions q2, q5"
        )
        sample = check_demonstrations(verifier, questions(12)[:12], limit=4, parsable=True)  # q0, q3, q6, q9
        assert (sample.possible, sample.checked, sample.refused) == (12, 4, {})
        assert sample.summary.endswith("none of 4 demonstrations checked")


def test_the_result_is_remembered_for_the_same_questions_and_verifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = VerifyConfig(function="rewards:always", workers=1)
    path = tmp_path / "run" / "demonstrations.json"
    verified: list[str] = []
    score = Verifier.score

    def counting_score(self: Verifier, responses: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        verified.extend(responses)
        return score(self, responses, answers)

    monkeypatch.setattr(Verifier, "score", counting_score)
    with make_verifier(settings) as verifier:

        def check(asked: list[Question], settings: VerifyConfig = settings, limit: int | None = None) -> int:
            verified.clear()
            result = remembered_check(path, settings, verifier, asked, limit=limit, parsable=True)
            assert result.refused == {}
            return len(verified)

        assert check(questions()[:3]) == 3
        assert check(questions()[:3]) == 0
        assert check(questions()[:4]) == 4
        corrected = [replace(question, answer="9") for question in questions()[:4]]
        assert (check(corrected), check(questions()[:4])) == (4, 4)
        assert check(questions()[:4], limit=2) == 2
        assert check(questions()[:4], VerifyConfig(function="rewards:has_a_digit"), limit=2) == 2
        path.write_text(json.dumps({"key": 3}) + "broken")
        assert check(questions()[:4]) == 4
        changed = json.loads(path.read_text()) | {"refused": {"0": "incorrect"}}
        path.write_text(json.dumps(changed))
        assert check(questions()[:4]) == 4
        assert check(questions()[:4]) == 0
