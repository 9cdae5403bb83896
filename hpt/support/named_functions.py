"""Functions that a recipe names as `module:function`: imported, or given as objects in Python."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from hpt.support.errors import ConfigError, HptError

GIVEN = "__main__"
"""The module in the name of a function that no import finds: one of a script, a notebook or another function."""

_given: dict[str, Callable[..., Any]] = {}  # by name


def name_function(function: Callable[..., Any]) -> str:
    """The "module:function" by which a recipe can name `function`.

    A function that no import finds is remembered in this process as "__main__:NAME"; a later one of that name
    replaces it. A functools.partial has the name of its function. ConfigError where there is no name, as a lambda has
    none.
    """
    named = function
    while isinstance(named, partial):
        named = named.func
    name = str(getattr(named, "__name__", type(named).__name__))
    if not name.isidentifier():
        raise ConfigError(f"{function!r} has no name that a recipe could record: define it by `def NAME(...)`")
    module = getattr(function, "__module__", None)
    if module and module != GIVEN and getattr(sys.modules.get(module), name, None) is function:
        return f"{module}:{name}"
    _given[name] = function
    return f"{GIVEN}:{name}"


@contextmanager
def only_functions_given_now() -> Iterator[None]:
    """Forgets the functions that were given before, and at its end those that were given within."""
    earlier = dict(_given)
    _given.clear()
    try:
        yield
    finally:
        _given.clear()
        _given.update(earlier)


def given_function(reference: str) -> Callable[..., Any] | None:
    """The function of this process that `name_function` remembers under this name; None if there is none."""
    module, _, name = reference.partition(":")
    return _given.get(name) if module == GIVEN else None


def resolve(reference: str, *, field: str, arguments: Sequence[str] = ()) -> Callable[..., Any]:
    """The function that `reference`, a "module:function", names: imported, or given in Python as an object.

    field: the setting, which errors name. arguments: names of the arguments it will be called with.
    ConfigError where it cannot be imported, is not callable or does not take these arguments.
    """
    function = given_function(reference) or _import(reference, field)
    if arguments:
        _check_arguments(function, reference, field, arguments)
    return function


def _import(reference: str, field: str) -> Callable[..., Any]:
    module_name, _, function_name = reference.partition(":")
    if module_name == GIVEN:
        raise ConfigError(
            f"{field} = {reference!r}: the function {function_name!r} was given in Python and no import finds it; "
            f"give it again, as in {_given_again(field)}, or move it to a module"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{field} = {reference!r}: module {module_name!r} cannot be imported: {reason}") from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ConfigError(f"{field} = {reference!r}: module {module_name!r} has no {function_name!r}")
    if not callable(function):
        raise ConfigError(f"{field} = {reference!r}: {function_name!r} is not callable")
    return function


def _given_again(field: str) -> str:
    """The calls that give a function as an object, in an error's words."""
    section, _, setting = field.partition(".")
    train = f"hpt.train(resume=FOLDER, {section}={f'{{{setting!r}: ...}}' if setting else '...'})"
    return f"{train} or hpt.evaluate(..., verifier=...)" if field == "verify.function" else train


def user_function(reference: str, *, field: str, arguments: Sequence[str]) -> Callable[..., Any]:
    """As `resolve`. What the function raises becomes an HptError that names the field, the function and the line."""
    function = resolve(reference, field=field, arguments=arguments)

    @wraps(function)
    def call(*given: Any) -> Any:
        try:
            return function(*given)
        except HptError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises; one that exits would end the run
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
