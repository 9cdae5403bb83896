"""The optimizer engines by name. A new engine is a module here and an entry in `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hpt.config.schema import Config
from hpt.optim.deepspeed import DeepSpeedEngine
from hpt.optim.engine import OptimizerEngine
from hpt.optim.local import LocalEngine
from hpt.support.distributed import World
from hpt.support.optional_packages import require


def _local(module: torch.nn.Module, config: Config, world: World) -> OptimizerEngine:
    return LocalEngine(module, config)


ENGINES: dict[str, Callable[[torch.nn.Module, Config, World], OptimizerEngine]] = {
    "local": _local,
    "deepspeed": DeepSpeedEngine,
}
"""By the name that a recipe's `engine` takes."""


def check_optimizer_engine(config: Config) -> None:
    """HptError where a package that the optimizer needs is missing. For use before a model is loaded."""
    if config.optimizer.states == "8bit":
        require("bitsandbytes", 'optimizer.states "8bit"', "'hpt[peft]'")
    if config.engine == "deepspeed":
        require("deepspeed", 'engine "deepspeed"', "'hpt[deepspeed]'")


def make_optimizer_engine(module: torch.nn.Module, config: Config, world: World) -> OptimizerEngine:
    """The engine that `config.engine` names, for the parameters of `module` that require a gradient."""
    return ENGINES[config.engine](module, config, world)
