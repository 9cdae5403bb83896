"""The loss inside other trainers: one module each, imported only by those who use that trainer.

upge.integrations.transformers.patch(model)        # HF Trainer, or a loop of your own
upge.integrations.trl.use_logprobs(), .GRPOTrainer, .SFTTrainer, .HPTTrainer
upge.integrations.verl.install(), .openrlhf.install(), .prime_rl.install()
"""

import importlib
from typing import Any

__all__ = ["openrlhf", "prime_rl", "transformers", "trl", "verl"]


def __getattr__(name: str) -> Any:
    """The module of a trainer, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"upge.integrations has {', '.join(__all__)}; got {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
