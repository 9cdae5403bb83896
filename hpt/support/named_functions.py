"""Imports functions that a recipe names as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from hpt.support.errors import ConfigError, HptError


def resolve(reference: str, *, field: str, arguments: Sequence[str] = ()) -> Callable[..., Any]:
    """Imports the function that `reference`, a "module:function", names.

    field: the setting, which errors name. arguments: names of the arguments it will be called with.
    ConfigError where it cannot be imported, is not callable or does not take these arguments.
    """
    module_name, _, function_name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
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


def user_function(reference: str, *, field: str, arguments: Sequence[str]) -> Callable[..., Any]:
    """As `resolve`. What the function raises becomes an HptError that names the field, the function and the line."""
    function = resolve(reference, field=field, arguments=arguments)

    @wraps(function)
    def call(*given: Any) -> Any:
        try:
            return function(*given)
        except HptError:
            raise
        except Exception as error:  # whatever the user's code raises
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}, line {place.lineno}"
            raise HptError(f"{field} = {reference!r} raised {type(error).__name__}: {error} ({where})") from error

    return call


def _check_arguments(function: Callable[..., Any], reference: str, field: str, arguments: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{field} = {reference!r}: is called with ({', '.join(arguments)}) and takes {signature}: {error}"
        ) from None
