"""When the values in a call's tensors are checked.

Checks of values make the CPU wait for a GPU. So they always run on a CPU, and on a GPU only inside `upge.debug()`. The
weight is read only inside `upge.debug()`, since that takes a pass over it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch

_debug: contextvars.ContextVar[bool] = contextvars.ContextVar("upge_debug", default=False)


@contextlib.contextmanager
def debug() -> Iterator[None]:
    """In this context every call checks the values of all its inputs (target ids, NaN, infinities, indices),
    but for `columns`.

    On a CPU this adds the weight to what is always checked. On a GPU it makes the CPU wait for the values.
    """
    token = _debug.set(True)
    try:
        yield
    finally:
        _debug.reset(token)


def active() -> bool:
    """Whether the call runs inside `debug`."""
    return _debug.get()


def reads_values(device: torch.device) -> bool:
    """Whether values on `device` may be checked."""
    return not torch.compiler.is_compiling() and (device.type == "cpu" or active())
