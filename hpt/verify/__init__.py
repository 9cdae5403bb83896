r"""Verifiers: is a response's final answer right?

`MathVerifier` compares it with math-verify, `ChoiceVerifier` takes the letter of a multiple choice, `FunctionVerifier`
asks a Python function. All work in a pool of processes that are killed when an answer exceeds its limits, so nothing
a model writes can stop a run, and all are light to import: sympy and the user's module are loaded in those processes
only.
"""

from hpt.verify.verifier import (
    ChoiceVerifier,
    FunctionVerifier,
    MathVerifier,
    Scoring,
    Status,
    Verdict,
    Verifier,
    make_verifier,
)

__all__ = [
    "ChoiceVerifier",
    "FunctionVerifier",
    "MathVerifier",
    "Scoring",
    "Status",
    "Verdict",
    "Verifier",
    "make_verifier",
]
