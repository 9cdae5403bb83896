"""Runs in stages: each has its own method and optimizer, and starts from the weights of the stage before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from hpt.config.recipe import build_config, merge, read_method
from hpt.config.schema import Config
from hpt.support.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """Steps `first` to `last` of a run, both included; `config.steps` is their number."""

    first: int
    last: int
    config: Config


def stages_of(config: Config) -> list[Stage]:
    """The stages of a run; one where the recipe names none. ConfigError where they do not fit its steps."""
    if not config.stages:
        return [Stage(1, config.steps, config)]
    found: list[Stage] = []
    for number, stage in enumerate(config.stages):
        first = found[-1].last + 1 if found else 1
        if stage.steps is None:
            last = config.steps
        else:
            last = first - 1 + (stage.steps if isinstance(stage.steps, int) else round(stage.steps * config.steps))
        rest = len(config.stages) - 1 - number
        if (stage.steps is None) != (rest == 0) or not first <= last <= config.steps - rest:
            raise ConfigError(
                f"stages.{number}.steps = {stage.steps}: every stage but the last needs `steps`, a count or a share, "
                f"that leave at least one step of {config.steps} to each stage after it; the last takes what is left"
            )
        settings = config.model_dump(mode="json")
        merge(settings, read_method(stage.method))
        merge(settings, stage.settings)
        settings |= {"stages": [], "steps": last - first + 1}
        found.append(Stage(first, last, build_config(settings, source=f"stages.{number} ({stage.method})")))
    return found


def check_begun_stages(before: Config, now: Config, done: int) -> None:
    """ConfigError where a stage that has begun by step `done` would have another method, or another first step.

    An optimizer would then go on in another stage. A change of `steps` does that where a stage has a share of them.
    """
    stages = stages_of(before)
    was, would_be = _begun(stages, done), _begun(stages_of(now), done)
    if was == would_be:
        return
    kept = [stage.model_dump(exclude_defaults=True) for stage in before.stages]
    for stage, place in zip(kept[:-1], stages[:-1], strict=True):
        stage["steps"] = place.config.steps
    as_counts = yaml.safe_dump(kept, default_flow_style=True, sort_keys=False, width=math.inf).strip()
    raise ConfigError(
        f"steps = {now.steps}, stages: after {done} steps the run has had {_in_words(was)}, and with "
        f"these settings it would have had {_in_words(would_be)}. What has begun must stay; counts "
        f"in place of shares do that: stages='{as_counts}'"
    )


def _begun(stages: Sequence[Stage], done: int) -> list[tuple[str, int]]:
    return [(stage.config.method, stage.first) for stage in stages if stage.first <= done]


def _in_words(begun: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{method} from step {first}" for method, first in begun)
