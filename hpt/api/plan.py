"""`hpt.plan`: predicts the memory and the time of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt.api.settings import GivenSettings
from hpt.support.errors import ConfigError, HptError
from hpt.support.messages import printing_messages

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hpt.config.schema import Config
    from hpt.memory import MemoryPlan
    from hpt.timing import Speedup, TimePlan


logger = logging.getLogger(__name__)


class Plan:
    """A prediction of a run's memory and time. Printed, it is the tables of `hpt plan`.

    peak: bytes on a GPU, or in CPU memory where the run has no GPU. fits: whether the memory suffices.
    memory: the prediction part by part. time: that of a step, phase by phase, and of the run; None where the run cannot
    work with these settings, whatever memory there is. speedups: the single changes that would help most.
    """

    def __init__(self, memory: MemoryPlan, time: TimePlan | None, speedups: Sequence[Speedup]) -> None:
        self.memory = memory
        self.peak = memory.peak
        self.fits = memory.fits
        self.time = time
        self.speedups = list(speedups)

    def parts(self) -> list[RenderableType]:
        """What `hpt plan` prints: tables, sums, what was assumed, and what would make the run fit or faster."""
        from hpt.memory import advice_lines
        from hpt.memory.table import plan_table, summary
        from hpt.timing import table, why_no_speedups

        parts: list[RenderableType] = [plan_table(self.memory), summary(self.memory)]
        parts += [*self.memory.notes, *advice_lines(self.memory)]
        if self.time is None:
            return [*parts, "", "How long a step takes is planned for runs that can work only."]
        for step in self.time.stages:
            parts += ["", table.time_table(step), table.time_summary(step)]
        parts += [table.run_summary(self.time), *table.assumption_lines(self.time)]
        if reason := why_no_speedups(self.memory, self.time):
            return [*parts, reason]
        return [*parts, *table.speedup_lines(self.speedups)]

    def __repr__(self) -> str:
        from hpt.support.terminal import as_text

        return as_text(*self.parts())


def plan(recipe: str | Path | None = None, *, response_tokens: int | None = None, **settings: Any) -> Plan:
    """The memory and the time that a run will need, from its recipe and its model's config; nothing is loaded.

        print(hpt.plan("qwen2.5-math-7b-1x80gb", hardware={"gpu_memory_gib": 40}))

    response_tokens: tokens of a response on average, for the time; default: a quarter of rollout.max_tokens.
    recipe, settings: as in `hpt.train`. HptError where the settings are wrong or the model's config cannot be read.
    """
    from hpt.config.recipe import read_config

    with printing_messages():
        config = read_config(recipe, GivenSettings(settings).changes)
        _check_response_tokens(config, response_tokens)
        if config.prepare is not None and _is_missing_here(config):
            raise _not_prepared(config)
        logger.info(f"Planning {recipe or 'the settings'}, loading PyTorch")

        from hpt.memory.meta_model import ArchitectureNotFound
        from hpt.memory.plan import largest, plan_stages
        from hpt.support.process_state import restoring_process_state
        from hpt.support.quiet import quiet_libraries
        from hpt.timing import make_time_plan, speedups

        with restoring_process_state():
            quiet_libraries()
            try:
                plans = plan_stages(config)
            except ArchitectureNotFound as error:
                if config.prepare is None:
                    raise
                raise _not_prepared(config) from error
            if any(plan.problems for plan in plans):
                return Plan(largest(plans), None, [])
            time = make_time_plan(plans, response_tokens=response_tokens)
            return Plan(largest(plans), time, speedups(plans, time))


def _check_response_tokens(config: Config, given: Any) -> None:
    """ConfigError if `given` is no mean length that the responses of every stage may have; and for wrong stages."""
    from hpt.config.stages import stages_of

    limit = min(stage.config.rollout.max_tokens for stage in stages_of(config))
    if given is not None and (type(given) is not int or not 1 <= given <= limit):
        raise ConfigError(f"response_tokens = {given!r}: must be a whole number from 1 to rollout.max_tokens = {limit}")


def _is_missing_here(config: Config) -> bool:
    """Whether the model can only be meant as a folder, and is not there. The run's own top folder is one ("runs")."""
    from hpt.config.recipe import shipped_model_config
    from hpt.support.hub import missing_local_path

    path = config.model.path
    if Path(path).expanduser().exists() or shipped_model_config(path).is_file():
        return False
    beside_the_run = "/" in path and Path(path).parts[0] == Path(config.output).parts[0]
    return beside_the_run or missing_local_path(path) is not None


def _not_prepared(config: Config) -> HptError:
    return HptError(
        f"model.path = {config.model.path!r} does not exist yet: this recipe's prepare ({config.prepare}) makes it. "
        "hpt train runs that first, and checks the plan before it loads the model."
    )
