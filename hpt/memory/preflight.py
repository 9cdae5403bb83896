"""The memory check of `hpt train` before it loads a model."""

from __future__ import annotations

import logging

from hpt.config.schema import Config
from hpt.memory.advice import advice_lines
from hpt.memory.plan import make_plan
from hpt.memory.table import plan_table, summary
from hpt.support.errors import HptError
from hpt.support.messages import show

logger = logging.getLogger(__name__)


def check_memory(config: Config, *, prompt_tokens: int) -> None:
    """Shows the plan of a run that is about to start.

    prompt_tokens: the longest prompt of its data.
    Raises HptError, with advice, if the run cannot fit and hardware.check is on.
    """
    plan = make_plan(config, prompt_tokens=prompt_tokens)
    show(logger, plan_table(plan))
    logger.info(summary(plan))
    if not plan.fits and config.hardware.check:
        raise HptError(
            "\n  ".join(
                [
                    f"this run does not fit ({summary(plan)})",
                    *advice_lines(plan, prompt_tokens=prompt_tokens),
                    "To train anyway: hardware.check=false",
                ]
            )
        )
