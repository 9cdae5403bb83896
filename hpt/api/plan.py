"""`hpt.plan`: predicts the memory of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt.api.settings import GivenSettings
from hpt.support.errors import HptError
from hpt.support.messages import printing_messages

if TYPE_CHECKING:
    from hpt.memory import MemoryPlan


def plan(recipe: str | Path | None = None, **settings: Any) -> MemoryPlan:
    """The memory that a run will need, from its recipe and its model's config; nothing is loaded.

        print(hpt.plan("qwen2.5-math-7b-1x80gb", hardware={"gpu_memory_gib": 40}))

    recipe, settings: as in `hpt.train`. Printed, the plan is a table; `peak` and `fits` are its result.
    HptError where the settings are wrong or the model's config cannot be read.
    """
    from hpt.config.recipe import read_config

    with printing_messages():
        config = read_config(recipe, GivenSettings(settings).changes)

        from hpt.memory import make_plan
        from hpt.memory.meta_model import ArchitectureNotFound
        from hpt.support.process_state import restoring_process_state
        from hpt.support.quiet import quiet_libraries

        with restoring_process_state():
            quiet_libraries()
            try:
                return make_plan(config)
            except ArchitectureNotFound as error:
                if config.prepare is None:
                    raise
                raise HptError(
                    f"model.path = {config.model.path!r} does not exist yet: this recipe's prepare ({config.prepare}) "
                    "makes it. hpt train runs that first, and checks the plan before it loads the model."
                ) from error
