"""What a verifier says about a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["correct", "incorrect", "unparsable", "timeout"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one response.

    status: "unparsable" where no answer can be read from the response; "timeout" where a limit of time or memory was
        exceeded, or the worker crashed twice.
    score: in [0, 1]; MathVerifier and ChoiceVerifier give 1.0 for correct, else 0.0.
    detail: why a response is unparsable, or which limit was exceeded; may be empty.
    """

    status: Status
    score: float
    detail: str = ""
