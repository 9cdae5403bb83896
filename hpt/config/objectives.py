"""The objective of each signal, from its name and options in a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hpt.support.named_functions import user_function

if TYPE_CHECKING:
    import upge  # imports torch


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
        presets = _presets(signal)
        if name not in presets:
            allowed = ", ".join(map(repr, presets))
            raise ValueError(f"{signal}.objective = {name!r}: allowed are {allowed}, or module:function")
        make = presets[name]
    known = list(inspect.signature(make).parameters)
    if unknown := [key for key in options if key not in known]:
        raise ValueError(
            f"{signal}.options: {signal}.objective {name} has no {unknown[0]!r}; allowed: {', '.join(known) or 'none'}"
        )
    try:
        return make(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{signal}.options = {dict(options)} do not fit {signal}.objective {name}: {error}") from error


def _presets(signal: str) -> dict[str, Callable[..., upge.Objective]]:
    """The presets of upge whose parts make sense for a signal."""
    import upge

    return {name: preset for name, preset in upge.PRESETS.items() if _fits(signal, preset())}


def _fits(signal: str, objective: upge.Objective) -> bool:
    if signal == "sft":
        return objective.advantage == "one"  # demonstrations have no advantage
    # pi_ref = 1 is for tokens that no known policy sampled: demonstrations trained by off-policy RL.
    return objective.advantage == "given" and (objective.reference == "one") == (signal == "off_policy")
