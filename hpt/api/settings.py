"""Settings as Python gives them: functions, data and paths as objects where a recipe has names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt.support.errors import ConfigError
from hpt.support.named_functions import name_function

if TYPE_CHECKING:
    from hpt.config.recipe import Setting

GIVEN_DATA = "{output}/data"
"""The folder in which a run keeps the data that was given as objects."""


FUNCTIONS = (
    *("prepare", "rewards", "rewards.function", "verify.function", "gate.function", "rl.advantage"),
    *("rl.objective", "sft.objective", "off_policy.objective"),
)
"""The settings that name a function."""


PLAIN = (str, int, float, bool, type(None))


class GivenSettings:
    """The keywords of `hpt.train` as settings of a recipe.

    changes: the settings. Functions are replaced by their names, data sets by files in the run's folder.
    records: the data sets by the file that is to hold them; "{output}" in its path stands for the run's folder.
    """

    def __init__(self, keywords: Mapping[str, Any]) -> None:
        self.records: dict[str, Any] = {}
        self._names: dict[str, Callable[..., Any]] = {}
        self.changes: list[Setting] = [(key, self._plain(key, value)) for key, value in keywords.items()]

    def _plain(self, key: str, value: Any) -> Any:
        """`value` as a recipe could have it. key: the dotted setting it belongs to."""
        if key == "data" and not isinstance(value, Mapping):
            return {"train": self._plain("data.train", value)}
        if key in ("data.train", "data.eval") and not isinstance(value, str | Path):
            return self._data(key, value)
        if key == "rewards" and isinstance(value, list | tuple):
            return [self._reward(reward) for reward in value]
        if isinstance(value, Mapping):
            return {str(name): self._plain(f"{key}.{name}", item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(key, item) for item in value]
        if isinstance(value, Path):
            return str(value)
        if callable(value):
            return self._name(key, value)
        if not isinstance(value, PLAIN) and hasattr(value, "tolist"):
            return value.tolist()  # a number, or several, of NumPy or torch
        if not isinstance(value, PLAIN):
            raise ConfigError(f"{key} = {shortened(value)}: an object; allowed is what a recipe may have")
        return value

    def _reward(self, reward: Any) -> Any:
        """A function, (function, weight), or what a recipe has."""
        if isinstance(reward, tuple):
            if len(reward) != 2:
                raise ConfigError(f"rewards: {reward!r}: allowed are a function and (function, weight)")
            return {"function": self._plain("rewards", reward[0]), "weight": reward[1]}
        return self._plain("rewards", reward)

    def _name(self, key: str, function: Callable[..., Any]) -> str:
        if not key.endswith(FUNCTIONS):
            raise ConfigError(f"{key} = {shortened(function)}: an object; allowed is what a recipe may have")
        if hasattr(function, "forward") and hasattr(function, "parameters"):
            raise ConfigError(f"{key}: {shortened(function)} is a model; call it in a function of yours")
        name = name_function(function)
        if self._names.setdefault(name, function) is not function:
            raise ConfigError(f"{key}: two different functions are called {name.partition(':')[2]!r}; rename one")
        return name

    def _data(self, key: str, value: Any) -> Any:
        """A mapping or a list of mappings with `path` is a recipe's; everything else are records to be written."""
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {**value, "path": self._data_path(key, value.get("path"))}
        if (
            isinstance(value, list | tuple)
            and value
            and all(isinstance(each, Mapping) and "path" in each for each in value)
        ):
            return [{**each, "path": self._data_path(key, each["path"])} for each in value]
        return self._data_path(key, value)

    def _data_path(self, key: str, value: Any) -> str:
        if isinstance(value, str | Path):
            return str(value)
        name = key.rpartition(".")[2]
        number = sum(Path(path).stem.partition("-")[0] == name for path in self.records) + 1
        path = f"{GIVEN_DATA}/{name}.jsonl" if number == 1 else f"{GIVEN_DATA}/{name}-{number}.jsonl"
        self.records[path] = value
        return path


def shortened(value: Any) -> str:
    """A value on one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
