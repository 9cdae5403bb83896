"""The built-in verifiers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpt.verify.choice import ChoiceVerifier
from hpt.verify.function import FunctionVerifier
from hpt.verify.math import MathVerifier
from hpt.verify.verifier import Verifier

if TYPE_CHECKING:
    from hpt.config.sections.rollout import VerifyConfig

VERIFIERS: dict[str, type[Verifier]] = {"math": MathVerifier, "choice": ChoiceVerifier}
"""By the name that a recipe's `verify.kind` and `hpt eval --verifier` take."""


def make_verifier(settings: VerifyConfig) -> Verifier:
    """The verifier that a recipe's `verify` section describes. ConfigError where its function cannot be imported."""
    if settings.function is not None:
        return FunctionVerifier.from_settings(settings)
    return VERIFIERS[settings.kind].from_settings(settings)
