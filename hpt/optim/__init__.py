"""Optimizer engines: what turns gradients into updates, in one process or in several."""

from __future__ import annotations

import torch

from hpt.config.schema import Config
from hpt.optim.deepspeed import ZeroEngine
from hpt.optim.local import Engine
from hpt.support.distributed import World


def make_optimizer_engine(module: torch.nn.Module, config: Config, world: World) -> Engine | ZeroEngine:
    """The optimizer engine of `module`, as `config.engine` asks."""
    if config.engine == "local":
        return Engine(module, config)
    return ZeroEngine(module, config, world)
