"""Learning rates: a linear warm-up, then constant, or down to 0 along a line or half a cosine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hpt.config.sections.training import OptimizerConfig


def learning_rate_factor(settings: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """A function from the number of training steps done, out of `steps`, to the factor of `optimizer.lr`."""
    warmup = settings.warmup_steps
    decay = max(1, steps - warmup)

    def factor(done: int) -> float:
        if done < warmup:
            # The schedules of `transformers.get_scheduler` start at 0, which would waste the first step.
            return (done + 1) / (warmup + 1)
        progress = min(1.0, (done - warmup) / decay)
        if settings.schedule == "linear":
            return 1.0 - progress
        if settings.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0

    return factor


def make_schedule(optimizer: Optimizer, settings: OptimizerConfig, steps: int, *, done: int = 0) -> LambdaLR:
    """The schedule of `optimizer`, whose learning rate it sets; done: training steps before a resumed run."""
    for group in optimizer.param_groups:
        group["initial_lr"] = settings.lr  # a loaded state has that of the earlier recipe
    return LambdaLR(optimizer, learning_rate_factor(settings, steps), last_epoch=done - 1)


def advance(schedule: LRScheduler) -> None:
    """Moves on by one training step."""
    with warnings.catch_warnings():
        # torch warns where no update came first. Here every update of the first steps may have been skipped.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        schedule.step()
