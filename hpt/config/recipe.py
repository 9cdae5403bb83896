"""Recipes: YAML files and `key=value` changes, read into one valid `Config`.

Layers, later ones winning: the defaults of `hpt.config.schema`, the method (`recipes/methods/NAME.yaml`), the recipe
that this one `extends` (a shipped one's name, or a file), the recipe, every `key=value` of the command line. A
`method=NAME` on the command line replaces the recipe's, and wins over the recipe's other settings.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hpt.config.schema import Config
from hpt.config.words import explain, nearest
from hpt.config.yaml_text import load_yaml
from hpt.support.errors import ConfigError

RECIPES = Path(str(resources.files("hpt"))) / "recipes"
METHODS = RECIPES / "methods"
_PLACEHOLDERS = ("{output}", "{seed}", "{question}")

Setting = tuple[str, Any]
"""A dotted key and its value: ("optimizer.lr", 1e-5)."""

_SHORT = {"model": "path", "data": "train", "track": "to"}
"""Sections that may be given as one value, and the field that it stands for."""


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """As `read_config`, with `key=value` texts."""
    return read_config(recipe, [parse_override(override) for override in overrides])


def read_config(recipe: str | Path | None, changes: Sequence[Setting] = ()) -> Config:
    """Reads a recipe (a YAML file or the name of a shipped one) and applies `changes`; None: the changes alone.

    Raises ConfigError, naming every field that is wrong, what it was given and what is allowed.
    """
    settings = {} if recipe is None else _read_recipe(recipe)
    changes = sorted(changes, key=lambda change: change[0] != "model.path")  # first: it drops another model's `config`
    chosen = [read_method(value) for key, value in changes if key == "method"][-1:]
    layers = [*(chosen or [read_method(settings.get("method", "hpt"))]), settings, *chosen]
    merged: dict[str, Any] = {}
    for layer in layers:
        merge(merged, layer)
    for key, value in changes:
        merge(merged, _expanded(nested(key, value)))
    return build_config(merged, source="settings" if recipe is None else str(recipe))


def build_config(settings: dict[str, Any], *, source: str) -> Config:
    """Validates nested settings; {output} and {seed} inside strings are filled in."""
    filled = _fill(settings, {"{output}": str(settings.get("output", "")), "{seed}": str(settings.get("seed", 0))})
    try:
        return Config.model_validate(filled)
    except ValidationError as error:
        raise ConfigError(f"{source}:\n  " + "\n  ".join(explain(error.errors()))) from None


def shipped_recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def shipped_methods() -> list[str]:
    return sorted(path.stem for path in METHODS.glob("*.yaml"))


def _read_recipe(recipe: str | Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe over those of the one it `extends`. below: the recipes that led here."""
    shipped = RECIPES / f"{recipe}.yaml"
    if Path(recipe).is_file() or shipped.is_file():
        settings = _read_yaml(Path(recipe) if Path(recipe).is_file() else shipped)
        if "extends" not in settings:
            return settings
        above = str(settings.pop("extends"))
        if above in (*below, str(recipe)):
            raise ConfigError(f"{recipe}: extends = {above!r}: these recipes extend each other in a circle")
        merged = _read_recipe(above, (*below, str(recipe)))
        merge(merged, settings)
        return merged
    names = shipped_recipes()
    raise ConfigError(
        f"there is no recipe {str(recipe)!r}{nearest(str(recipe), names)} "
        f"give a YAML file or one of the shipped recipes: {', '.join(names)}"
    )


def shipped_model_config(path: str) -> Path:
    """Where hpt ships the config.json of the model of that hub name or folder, if it ships one."""
    return RECIPES / "models" / f"{path.rpartition('/')[2].lower()}.json"


def read_method(name: Any) -> dict[str, Any]:
    if Path(str(name)).suffix in (".yaml", ".yml"):
        return _read_yaml(Path(name)) | {"method": str(name)}
    if str(name) not in shipped_methods():
        raise ConfigError(
            f"method = {name!r}{nearest(str(name), shipped_methods())} "
            f"allowed: {', '.join(shipped_methods())}, or a YAML file"
        )
    return _read_yaml(METHODS / f"{name}.yaml") | {"method": name}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings, got {type(settings).__name__}")
    return _expanded(settings)


def _expanded(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the sections of `_SHORT` written out."""
    return {
        key: {_SHORT[key]: value} if key in _SHORT and not isinstance(value, dict) else value
        for key, value in settings.items()
    }


def parse_override(override: str) -> tuple[str, Any]:
    """The value is YAML on one line: a scalar, or a list or mapping in brackets; "Q: {question}" is plain text."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{override!r}: settings are changed by key=value, e.g. optimizer.lr=1e-5")
    bracketed = text.startswith(("[", "{")) and not text.startswith(_PLACEHOLDERS)
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        if bracketed:
            raise ConfigError(f"{override!r}: the value is not valid YAML: {error}") from None
        value = text
    return key.strip(), text if isinstance(value, dict | list) and not bracketed else value


def nested(key: str, value: Any) -> dict[str, Any]:
    """A dotted key and its value as nested settings: "a.b" and 1 give {"a": {"b": 1}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merge(into: dict[str, Any], layer: dict[str, Any]) -> None:
    # `options` belong to the objective that they are given with, and `config` to the model: another replaces both.
    if "objective" in layer and into.get("objective") != layer["objective"]:
        into.pop("options", None)
    if "path" in layer and _model_name(into.get("path")) != _model_name(layer["path"]):
        into.pop("config", None)
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)  # later layers are merged into it


def _model_name(path: Any) -> str:
    """Of a hub name or a folder: a local copy of a model has its name."""
    return Path(str(path)).name.lower()


def _fill(value: Any, fields: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, fields) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, fields) for item in value]
    if isinstance(value, str):
        for name, text in fields.items():
            value = value.replace(name, text)
    return value
