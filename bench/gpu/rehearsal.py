"""What a rehearsal of `python -m bench gpu` on a CPU needs: kernels in Triton's interpreter, a crash, and a hang."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from upge.backends import tiling

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
    tiling.CHUNK_BYTES = 1
    with row_independent_dot():
        yield from getattr(importlib.import_module(module), function)(**arguments, **worker)


@contextmanager
def row_independent_dot() -> Iterator[None]:
    """In the interpreter, a row of a dot product gets the same bits at any position in its tile, as on a GPU.

    The interpreter multiplies with NumPy's matmul. On CPUs without AVX-512 its rounding depends on a row's position.
    """
    from triton.runtime import interpreter

    def create_dot(builder: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
        product = np.zeros_like(total.data)
        for k in range(a.data.shape[1]):
            product += a.data[:, k, None] * b.data[None, k, :]
        return interpreter.TensorHandle(product + total.data, total.dtype.scalar)

    before = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = create_dot
    try:
        yield
    finally:
        interpreter.InterpreterBuilder.create_dot = before


def crash() -> Iterator[Any]:
    yield {"what": "before the crash", "found": "", "held": None}
    os.abort()


def hang() -> Iterator[Any]:
    yield {"what": "before the hang", "found": "", "held": None}
    time.sleep(3600)
