"""Advice for a run that does not fit: the single changes of its recipe that would make it fit."""

from __future__ import annotations

from collections.abc import Iterator

from hpt.config.schema import Config
from hpt.memory.plan import MemoryPlan, make_plan
from hpt.memory.savings import Change, as_settings, saving_changes, with_change
from hpt.support.errors import HptError


def advice_lines(plan: MemoryPlan, *, prompt_tokens: int | None = None) -> list[str]:
    """What to tell the user about a plan that does not fit: its problems and what helps. Empty for a plan that fits.

    prompt_tokens: the longest prompt, if known, as for `make_plan`.
    """
    if plan.fits:
        return []
    changes = single_changes(plan, prompt_tokens=prompt_tokens)
    if not changes:
        return [*plan.problems, "No single change makes it fit; combine several, or use a smaller model."]
    return [
        *plan.problems,
        "Any one of these makes it fit, the cheapest first:",
        *(f"  {change}" for change in changes),
    ]


def single_changes(plan: MemoryPlan, *, prompt_tokens: int | None = None) -> list[str]:
    """The changes that suffice on their own, as `key=value` for the command line, the cheapest first."""
    found = [as_settings(change) for change in saving_changes(plan.config) if _fits(plan.config, change, prompt_tokens)]
    for change in _more_gpus(plan):
        if _fits(plan.config, change, prompt_tokens):
            found.append(as_settings(change))
            break
    return found


def _more_gpus(plan: MemoryPlan) -> Iterator[Change]:
    """The fewest GPUs first."""
    if plan.hardware.gpu_bytes is None:
        return
    zero: Change = {} if plan.config.engine == "deepspeed" else {"engine": "deepspeed", "deepspeed.stage": 3}
    for count in (2, 4, 8, 16, 32, 64):
        if count > plan.hardware.gpus:
            yield {**zero, "hardware.gpus": count}


def _fits(config: Config, change: Change, prompt_tokens: int | None) -> bool:
    try:
        return make_plan(with_change(config, change), prompt_tokens=prompt_tokens).fits
    except HptError:  # the recipe rules this change out, or a package for it is not installed
        return False
