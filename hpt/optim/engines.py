"""The optimizer engine that a recipe names. A new engine is a module beside `local`, and a case here."""

from __future__ import annotations

import torch

from hpt.config.schema import Config
from hpt.optim.deepspeed import DeepSpeedEngine
from hpt.optim.engine import OptimizerEngine
from hpt.optim.local import LocalEngine
from hpt.support.distributed import World
from hpt.support.optional_packages import require


def check_optimizer_engine(config: Config) -> None:
    """HptError where a package that the optimizer needs is missing. For use before a model is loaded."""
    if config.optimizer.states == "8bit":
        require("bitsandbytes", 'optimizer.states "8bit"', "'hpt[peft]'")
    if config.engine == "deepspeed":
        require("deepspeed", 'engine "deepspeed"', "'hpt[deepspeed]'")


def make_optimizer_engine(module: torch.nn.Module, config: Config, world: World) -> OptimizerEngine:
    """The engine that `config.engine` names, for the parameters of `module` that require a gradient."""
    if config.engine == "deepspeed":
        return DeepSpeedEngine(module, config, world)
    return LocalEngine(module, config)
