"""Which single change of a recipe that does not fit would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from hpt.config.recipe import build_config, merge
from hpt.config.schema import Config
from hpt.memory.changes import Change, changes_of, written
from hpt.memory.plan import Plan, make_plan
from hpt.support.errors import HptError


def single_changes(plan: Plan, *, prompt_tokens: int | None = None) -> list[str]:
    """The changes that suffice on their own, as `key=value` for the command line, those that cost least first."""
    found: list[str] = []
    enough_gpus = False
    for change in chain(changes_of(plan.config), _more_gpus(plan)):
        if "hardware.gpus" in change and enough_gpus:
            continue
        if _fits(plan.config, change, prompt_tokens):
            found.append(written(change))
            enough_gpus |= "hardware.gpus" in change
    return found


def _more_gpus(plan: Plan) -> Iterator[Change]:
    gpus = plan.hardware.gpus
    if plan.hardware.gpu_bytes is not None:
        more = [count for count in (2, 4, 8, 16, 32, 64) if count > gpus]
        zero: Change = {} if plan.config.engine == "deepspeed" else {"engine": "deepspeed", "deepspeed.stage": 3}
        yield from ({**zero, "hardware.gpus": count} for count in more)


def _fits(config: Config, change: Change, prompt_tokens: int | None) -> bool:
    settings = config.model_dump(mode="json")
    for key, value in change.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        merge(settings, value)
    try:
        return make_plan(build_config(settings, source="advice"), prompt_tokens=prompt_tokens).fits
    except HptError:  # a combination that cannot be, or a package that is not here
        return False
