"""The functions that worker processes call: imported by name, or sent as bytes where no import finds them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpt.support.errors import ConfigError
from hpt.support.named_functions import given_function, resolve

Portable = Mapping[str, bytes | None]
"""Functions by "module:function": pickled by cloudpickle, or None where the workers import them."""

_loaded: dict[str, Callable[..., Any]] = {}  # in the fork server and its workers


def portable(references: Sequence[str], *, field: str) -> Portable:
    """The functions as they are sent to the fork server. `field` is the setting that names them.

    ConfigError where one was given as an object that cannot be pickled.
    """
    return {reference: _pickled(reference, field) for reference in references}


def _pickled(reference: str, field: str) -> bytes | None:
    function = given_function(reference)
    if function is None:
        return None
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(function))
    except Exception as error:  # whatever the objects that a function refers to raise
        raise ConfigError(
            f"{field} = {reference!r} cannot be sent to the worker processes: {type(error).__name__}: {error}. "
            "Have it make such an object itself where it is called, or move it to a module"
        ) from error


def load(functions: Portable, *, field: str) -> None:
    """Makes the functions ready in this process. The bytes are trusted: the run's own process sent them."""
    for reference, pickled in functions.items():
        _loaded[reference] = resolve(reference, field=field) if pickled is None else pickle.loads(pickled)


def loaded(reference: str) -> Callable[..., Any]:
    """A function that `load` has made ready."""
    return _loaded[reference]
