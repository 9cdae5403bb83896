"""`hpt plan`, and the check that `hpt train` does before it loads a model."""

from __future__ import annotations

from rich.console import Console

from hpt.config.schema import Config
from hpt.memory.advice import single_changes
from hpt.memory.plan import Plan, make_plan
from hpt.memory.skeleton import NoArchitecture
from hpt.memory.table import plan_table, summary
from hpt.support.errors import HptError
from hpt.support.terminal import print_results

DOES_NOT_FIT = 1


def run_plan(config: Config) -> int:
    """Prints the plan to stdout, with advice where it does not fit. The exit code: 0, or 1 where it does not."""
    try:
        plan = make_plan(config)
    except NoArchitecture as error:
        if config.prepare is None:
            raise
        raise HptError(
            f"model.path = {config.model.path!r} does not exist yet: this recipe's prepare ({config.prepare}) is to "
            "make it. hpt train runs that first, and checks the plan before it loads the model."
        ) from error
    print_results(plan_table(plan), summary(plan), *plan.notes, *advice_lines(plan))
    return 0 if plan.fits else DOES_NOT_FIT


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
