"""Functions that a recipe names as `module:function`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from hpt.support.errors import ConfigError


def resolve(reference: str, *, field: str, arguments: Sequence[str] = ()) -> Callable[..., Any]:
    """The function that `reference` ("module:function") names; ConfigError naming `field` if there is none.

    arguments: names of what it will be called with; ConfigError where it cannot take as many, too.
    """
    module_name, _, function_name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module raises
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{field} = {reference!r}: module {module_name!r} cannot be imported: {reason}") from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ConfigError(f"{field} = {reference!r}: module {module_name!r} has no {function_name!r}")
    if not callable(function):
        raise ConfigError(f"{field} = {reference!r}: {function_name!r} is not callable")
    if arguments:
        _check_arguments(function, reference, field, arguments)
    return function


def _check_arguments(function: Callable[..., Any], reference: str, field: str, arguments: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some of C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{field} = {reference!r}: is called with ({', '.join(arguments)}) and takes {signature}: {error}"
        ) from None
