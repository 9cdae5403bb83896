"""`hpt.plan`: predicts the memory of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt.api.settings import GivenSettings
from hpt.support.errors import HptError
from hpt.support.messages import printing_messages

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hpt.memory import MemoryPlan


logger = logging.getLogger(__name__)


class Plan:
    """A prediction of a run's memory. Printed, it is the table of `hpt plan`.

    peak: bytes on a GPU, or in CPU memory where the run has no GPU. fits: whether the memory suffices.
    memory: the prediction part by part.
    """

    def __init__(self, memory: MemoryPlan) -> None:
        self.memory = memory
        self.peak = memory.peak
        self.fits = memory.fits

    def parts(self) -> list[RenderableType]:
        """What `hpt plan` prints: the table, the peaks, what was assumed, and what would make the run fit."""
        from hpt.memory import advice_lines
        from hpt.memory.table import plan_table, summary

        return [plan_table(self.memory), summary(self.memory), *self.memory.notes, *advice_lines(self.memory)]

    def __repr__(self) -> str:
        from hpt.support.terminal import as_text

        return as_text(*self.parts())


def plan(recipe: str | Path | None = None, **settings: Any) -> Plan:
    """The memory that a run will need, from its recipe and its model's config; nothing is loaded.

        print(hpt.plan("qwen2.5-math-7b-1x80gb", hardware={"gpu_memory_gib": 40}))

    recipe, settings: as in `hpt.train`. HptError where the settings are wrong or the model's config cannot be read.
    """
    from hpt.config.recipe import read_config

    with printing_messages():
        config = read_config(recipe, GivenSettings(settings).changes)
        logger.info(f"Planning {recipe or 'the settings'}, loading PyTorch")

        from hpt.memory import make_plan
        from hpt.memory.meta_model import ArchitectureNotFound
        from hpt.support.process_state import restoring_process_state
        from hpt.support.quiet import quiet_libraries

        with restoring_process_state():
            quiet_libraries()
            try:
                return Plan(make_plan(config))
            except ArchitectureNotFound as error:
                if config.prepare is None:
                    raise
                raise HptError(
                    f"model.path = {config.model.path!r} does not exist yet: this recipe's prepare ({config.prepare}) "
                    "makes it. hpt train runs that first, and checks the plan before it loads the model."
                ) from error
