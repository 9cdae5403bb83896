r"""Verifiers: is a response's final answer right? And reward functions: what is it worth?

`MathVerifier` compares it with math-verify, `ChoiceVerifier` reads the letter of a multiple-choice answer,
`FunctionVerifier` calls a Python function. All grade in a pool of processes that are killed when an answer exceeds its
limits, so nothing that a model writes can stop a run. Importing them is cheap: only those processes import sympy and
the user's module. `RewardFunctions` calls functions in TRL's form in the same way, and `Judging` joins the two for a
step of training.

To add a verifier: write a module with a subclass of `Verifier` (`choice.py` is an example), name it in `VERIFIERS`, and
add the name to `kind` in `hpt.config.sections.rollout.VerifyConfig`.
"""

from hpt.verify.choice import ChoiceVerifier
from hpt.verify.function import FunctionVerifier
from hpt.verify.judging import Judgement, Judging, RewardVerdicts
from hpt.verify.math import MathVerifier
from hpt.verify.registry import VERIFIERS, make_verifier
from hpt.verify.reward_call import TrainerState
from hpt.verify.rewards import Completion, GroupRewards, Response, RewardFunctions, make_reward_functions
from hpt.verify.verdict import Status, Verdict
from hpt.verify.verifier import Scoring, Verifier

__all__ = [
    "VERIFIERS",
    "ChoiceVerifier",
    "Completion",
    "FunctionVerifier",
    "GroupRewards",
    "Judgement",
    "Judging",
    "MathVerifier",
    "Response",
    "RewardFunctions",
    "RewardVerdicts",
    "Scoring",
    "Status",
    "TrainerState",
    "Verdict",
    "Verifier",
    "make_reward_functions",
    "make_verifier",
]
