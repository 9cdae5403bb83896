"""The objective of each signal, from its name and options in a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hpt.support.named_functions import user_function

if TYPE_CHECKING:
    import upge  # imports torch


PRESETS = {
    "rl": ("REINFORCE", "PPO", "GRPO", "DrGRPO", "DAPO", "CISPO", "GSPO", "SAPO"),
    "sft": ("SFT", "DFT"),
    "off_policy": ("LUFFY", "SRFT"),
}
"""For each signal the presets of upge whose parts make sense for it."""


def check_objective(signal: str, name: str, options: Mapping[str, Any]) -> None:
    """ValueError as in `make_objective`. A preset without options is known without upge, which imports torch."""
    if options or name not in PRESETS[signal]:
        make_objective(signal, name, options)


def make_objective(signal: str, name: str, options: Mapping[str, Any]) -> upge.Objective:
    """`upge.NAME(**options)`, or an objective from the function that `name` ("module:function") refers to.

    signal: "rl", "sft" or "off_policy", the section of the recipe.
    ValueError, naming the field, where there is no such preset for this signal or the options do not fit it.
    """
    import upge

    make: Callable[..., upge.Objective]
    if ":" in name:
        function = user_function(name, field=f"{signal}.objective", arguments=["logprobs", "batch"])

        def make(per_token: bool = False) -> upge.Objective:
            return upge.Objective.from_function(function, name=name, per_token=per_token)
    else:
        if name not in PRESETS[signal]:
            allowed = ", ".join(map(repr, PRESETS[signal]))
            raise ValueError(f"{signal}.objective = {name!r}: allowed are {allowed}, or module:function")
        make = upge.PRESETS[name]
    known = list(inspect.signature(make).parameters)
    if unknown := [key for key in options if key not in known]:
        raise ValueError(
            f"{signal}.options: {signal}.objective {name} has no {unknown[0]!r}; allowed: {', '.join(known) or 'none'}"
        )
    try:
        return make(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{signal}.options = {dict(options)} do not fit {signal}.objective {name}: {error}") from error
