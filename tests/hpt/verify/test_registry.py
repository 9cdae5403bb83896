"""Verifiers by their names in a recipe, and their limits."""

import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from hpt.config.sections.rollout import VerifyConfig
from hpt.support.errors import ConfigError
from hpt.verify import VERIFIERS, ChoiceVerifier, FunctionVerifier, MathVerifier, Verdict, make_verifier


def test_importing_the_verifiers_is_light():
    code = "import sys, hpt.verify; print([name for name in ('torch', 'numpy', 'sympy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("limits", [{"workers": 0}, {"timeout": 0.0}, {"timeout": float("nan")}, {"memory_mb": -1}])
def test_impossible_limits(limits):
    (name,) = limits
    with pytest.raises(ConfigError, match=rf"verify\.{name} = .* must be greater than 0"):
        MathVerifier(**limits)


@pytest.mark.usefixtures("importable")
def test_make_verifier():
    settings = {"boxed": False, "workers": 1, "timeout": 1.0, "memory_mb": 256}
    assert isinstance(make_verifier(SimpleNamespace(kind="math", function=None, **settings)), MathVerifier)
    assert isinstance(make_verifier(SimpleNamespace(kind="choice", function=None, **settings)), ChoiceVerifier)
    with make_verifier(SimpleNamespace(kind="math", function="judging:equal", **settings)) as verifier:
        assert isinstance(verifier, FunctionVerifier)
        assert verifier.score(["a"], ["a"]) == [Verdict("correct", 1.0)]


def test_a_recipe_can_name_every_built_in_verifier():
    assert set(get_args(VerifyConfig.model_fields["kind"].annotation)) == set(VERIFIERS)
