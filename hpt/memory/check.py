"""The memory check of `hpt train` before it loads a model, and the advice for a run that does not fit."""

from __future__ import annotations

from rich.console import Console

from hpt.config.schema import Config
from hpt.memory.advice import single_changes
from hpt.memory.plan import Plan, make_plan
from hpt.memory.table import plan_table, summary
from hpt.support.errors import HptError


def check_memory(config: Config, console: Console, *, prompt_tokens: int) -> None:
    """Shows the plan of a run whose longest prompt is known.

    HptError, with advice, where the run cannot fit, unless hardware.check is off.
    """
    plan = make_plan(config, prompt_tokens=prompt_tokens)
    console.print(plan_table(plan))
    console.print(summary(plan), soft_wrap=True)
    if not plan.fits and config.hardware.check:
        raise HptError(
            "\n  ".join(
                [
                    f"this run does not fit ({summary(plan)})",
                    *advice_lines(plan, prompt_tokens=prompt_tokens),
                    "hardware.check=false trains all the same",
                ]
            )
        )


def advice_lines(plan: Plan, *, prompt_tokens: int | None = None) -> list[str]:
    """What to say of a plan that does not fit; nothing of one that does."""
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
