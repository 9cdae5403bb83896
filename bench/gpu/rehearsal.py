"""What a rehearsal of `python -m bench gpu` on a CPU needs: kernels in Triton's interpreter, a crash, and a hang."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from upge.backends import plan

from .interpreter import as_on_a_gpu
from .schedule import Stage

# torch.compile takes long, and says nothing about a GPU.
ENVIRONMENT = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


def rehearsed(stage: Stage) -> Stage:
    """The same stage with kernels in the interpreter."""
    name = f"{stage.function.__module__}:{stage.function.__qualname__}"
    return replace(stage, function=run_interpreted, arguments={"name": name, "arguments": stage.arguments})


def run_interpreted(name: str, arguments: dict[str, Any], **worker: Any) -> Iterable[Any]:
    """Call a stage's function, in chunks of few rows."""
    module, _, function = name.partition(":")
    plan.CHUNK_BYTES = 1
    with as_on_a_gpu():
        yield from getattr(importlib.import_module(module), function)(**arguments, **worker)


def crash() -> Iterator[Any]:
    yield {"what": "before the crash", "found": "", "held": None}
    os.abort()


def hang() -> Iterator[Any]:
    yield {"what": "before the hang", "found": "", "held": None}
    time.sleep(3600)
