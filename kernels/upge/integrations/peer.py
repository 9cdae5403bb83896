"""What an integration replaces in another package: found, checked before it is touched, and replaced once."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REPLACED = "_upge_replaced"


@dataclass(frozen=True)
class Peer:
    """A module of another package, and the functions in it that an integration relies on.

    package:   its name for pip.
    module:    the module's full name.
    functions: a name in the module ("function" or "Class.method"), and the parameters that it must begin with.
    supported: the version that the integration is tested with.
    get:       what to type where the package is missing.
    """

    package: str
    module: str
    functions: Mapping[str, Sequence[str]]
    supported: str
    get: str

    def load(self) -> ModuleType:
        """The module, imported and checked.

        Raises ModuleNotFoundError where the package is not installed, and ImportError where it is of a version that
        differs in what the integration relies on.
        """
        self.check_installed()
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name is None or not self.module.startswith(error.name):
                raise  # something else that the package needs
            raise self._differs(f"no module {self.module}") from None
        self.check(module)
        return module

    def when_imported(self, call: Callable[[ModuleType], None]) -> None:
        """Call `call` with the checked module: now if it has been imported, else right after it will be."""
        if self.module in sys.modules:
            self.check(sys.modules[self.module])
            call(sys.modules[self.module])
            return
        self.check_installed()
        if not any(isinstance(finder, _WhenImported) and finder.peer == self for finder in sys.meta_path):
            sys.meta_path.insert(0, _WhenImported(self, call))

    def check_installed(self) -> None:
        root = self.module.partition(".")[0]
        if root not in sys.modules and importlib.util.find_spec(root) is None:
            raise ModuleNotFoundError(f"{self.package} is not installed: {self.get}", name=root)

    def check(self, module: ModuleType) -> None:
        """Raise ImportError unless the module has the functions, with the parameters that they must begin with."""
        for name, expected in self.functions.items():
            try:
                function: Any = reduce(getattr, name.split("."), module)
                found = list(inspect.signature(function).parameters.values())
            except (AttributeError, TypeError, ValueError):
                raise self._differs(f"no function {name} in {self.module}") from None
            names = [parameter.name for parameter in found]
            if names[: len(expected)] != list(expected):
                takes, needed = ", ".join(names), ", ".join(expected)
                raise self._differs(f"{self.module}.{name} takes ({takes}) where ({needed}) is expected")

    def _differs(self, what: str) -> ImportError:
        try:
            version = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            version = "of an unknown version"
        return ImportError(
            f"{self.package} {version} differs from the supported {self.package} {self.supported}: {what}. "
            f"Use the supported version: {self.get}"
        )


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Set `owner.name` to `make(owner.name)`. A second call leaves the replacement as it is."""
    theirs = getattr(owner, name)
    if hasattr(theirs, _REPLACED):
        return
    ours = make(theirs)
    setattr(ours, _REPLACED, theirs)
    setattr(owner, name, ours)


class _WhenImported(MetaPathFinder):
    """Finds a peer's module as Python does, and calls a function with it once it has been executed."""

    def __init__(self, peer: Peer, call: Callable[[ModuleType], None]):
        self.peer = peer
        self.call = call

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.peer.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.peer.check(module)
                self.call(module)

            spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec
