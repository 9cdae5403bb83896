"""Recipes: YAML files and `key=value` changes, read into one valid `Config`.

Layers, later ones winning: the defaults of `hpt.config.schema`, the method (`recipes/methods/NAME.yaml`), the recipe
that this one `extends` (a shipped one's name, or a file), the recipe, every `key=value` of the command line. A
`method=NAME` on the command line replaces the recipe's, and wins over the recipe's other settings.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hpt.config.schema import Config
from hpt.config.sections.section import Section
from hpt.support.errors import ConfigError

RECIPES = Path(str(resources.files("hpt"))) / "recipes"
METHODS = RECIPES / "methods"
_PLACEHOLDERS = ("{output}", "{seed}", "{question}")


Setting = tuple[str, Any]
"""A dotted key and its value: ("optimizer.lr", 1e-5)."""

_SHORT = {"model": "path", "data": "train"}
"""Sections that may be given as one value, and the field that it stands for."""


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """As `read_config`, with `key=value` texts."""
    return read_config(recipe, [parse_override(override) for override in overrides])


def read_config(recipe: str | Path | None, changes: Sequence[Setting] = ()) -> Config:
    """Reads a recipe (a YAML file or the name of a shipped one) and applies `changes`; None: the changes alone.

    Raises ConfigError, naming every field that is wrong, what it was given and what is allowed.
    """
    settings = {} if recipe is None else _read_recipe(recipe)
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
        raise ConfigError(f"{source}:\n  " + "\n  ".join(_explain(item) for item in error.errors())) from None


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
        f"there is no recipe {str(recipe)!r}{_nearest(str(recipe), names)} "
        f"give a YAML file or one of the shipped recipes: {', '.join(names)}"
    )


def read_method(name: Any) -> dict[str, Any]:
    if Path(str(name)).suffix in (".yaml", ".yml"):
        return _read_yaml(Path(name)) | {"method": str(name)}
    if str(name) not in shipped_methods():
        raise ConfigError(
            f"method = {name!r}{_nearest(str(name), shipped_methods())} "
            f"allowed: {', '.join(shipped_methods())}, or a YAML file"
        )
    return _read_yaml(METHODS / f"{name}.yaml") | {"method": name}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        value = yaml.safe_load(text)
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
    for key, value in layer.items():
        # `options` belong to the objective they are given with: another layer's objective replaces both.
        if key == "objective" and into.get(key) != value:
            into.pop("options", None)
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)  # later layers are merged into it


def _fill(value: Any, fields: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, fields) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, fields) for item in value]
    if isinstance(value, str):
        for name, text in fields.items():
            value = value.replace(name, text)
    return value


def _explain(error: Any) -> str:
    """One line of a pydantic error: the field, the value it got, what is allowed."""
    # Parts in angle brackets tell apart the forms that a value may have.
    location = [str(part) for part in error["loc"] if not str(part).startswith("<")]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        elsewhere = _keys_named(location[-1])
        if elsewhere:
            return f"{key}: there is no such setting; did you mean {' or '.join(elsewhere)}?"
        known = _known_keys(location[:-1])
        return f"{key}: there is no such setting{_nearest(location[-1], known)} known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{key}: is required and missing"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} = {error['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(location: list[str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location:
        if not part.isdigit():  # the number of a section in a list
            section = next(sections_in(section.model_fields[part].annotation))
    return list(section.model_fields)


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """A type itself, if it is a section, and the sections within a list or a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def _keys_named(name: str) -> list[str]:
    """The settings, by dotted key, whose last part is `name`."""
    return [key for key, _ in _settings_of(Config, prefix="") if key.rpartition(".")[2] == name]


def _nearest(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ";"


def describe_settings() -> str:
    """Every setting with its default, one per line, for `hpt train --help`."""
    lines = []
    for key, field in _settings_of(Config, prefix=""):
        default = "(required)" if field.is_required() else yaml.safe_dump(field.default, default_flow_style=True)
        notes = "; ".join(note for note in (" | ".join(allowed_values(field.annotation)), field.description) if note)
        lines.append(f"  {key:30} {default.splitlines()[0]:14} {notes}".rstrip())
    return "\n".join(lines)


def _settings_of(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """The settings of a section and of the sections in it, by dotted key."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _settings_of(field.annotation, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def allowed_values(annotation: Any) -> list[str]:
    """The values that a type names, also within a list or a union."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    found = [choice for part in get_args(annotation) for choice in allowed_values(part)]
    return [*found, "true", "false"] if found and bool in get_args(annotation) else found
