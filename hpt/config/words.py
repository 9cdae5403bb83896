"""The settings in words: what each is, and what is wrong with one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeGuard, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hpt.config.other_trainers import advice_for
from hpt.config.schema import Config
from hpt.config.sections.rewards import REWARDS_FORM
from hpt.config.sections.section import Section


def explain(errors: Sequence[Any]) -> list[str]:
    """A line for each pydantic error: the field, the value it got, what is allowed. Known keys are listed once."""
    lines: list[str] = []
    listed: list[list[str]] = []
    for error in errors:
        location = _location(error)
        if error["type"] == "extra_forbidden":
            line = _explain_unknown(location, list_known=location[:-1] not in listed)
            if "known here" in line:
                listed.append(location[:-1])
        else:
            line = _explain_value(error, location)
        if line not in lines:
            lines.append(line)
    return lines


def _location(error: Any) -> list[str]:
    """The parts of a field's key, without those by which pydantic tells apart the forms that a value may have."""
    parts = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":  # the last one is of the user
        return [*_location({"type": "", "loc": error["loc"][:-1]}), parts[-1]]
    return [part for part in parts if "<" not in part and "[" not in part and part not in ("int", "float", "bool")]


def _explain_unknown(location: list[str], *, list_known: bool) -> str:
    *section, name = location
    unknown = f"{'.'.join(location)}: there is no such setting"
    if elsewhere := _keys_named(name):
        return f"{unknown}; did you mean {' or '.join(elsewhere)}?"
    if advice := advice_for(name):
        return f"{unknown}; {advice}"
    known = _known_keys(section)
    meant = nearest(name, known)
    return f"{unknown}{meant} known here: {', '.join(known)}" if list_known else f"{unknown}{meant.rstrip(';')}"


def _explain_value(error: Any, location: list[str]) -> str:
    key = ".".join(location)
    if error["type"] == "missing":
        return f"{key}: is required and missing"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    given = f"{key} = {error['input']!r}"
    if location[0] == "rewards" and error["type"] in ("list_type", "model_type"):
        return f"{given}: {REWARDS_FORM}"
    if error["type"] == "model_type":
        known = _known_keys(location)
        return f"{given}: should be a mapping, such as {{{known[0]}: ...}}; it may have {', '.join(known)}"
    words = {"list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping of names to values"}
    if error["type"] in words:
        named = "a name, or " if "<sources>" in error["loc"] else ""
        return f"{given}: should be {named}{words[error['type']]}"
    return f"{given}: {message[0].lower()}{message[1:]}"


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


def nearest(name: str, known: Sequence[str]) -> str:
    """How an error goes on that lists what is known: with the name that was probably meant."""
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
    """The settings of a section and of the sections in it, by dotted key; one that may be missing is itself one."""
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from _settings_of(field.annotation, prefix=f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", field
        if get_origin(field.annotation) is not list:
            for part in filter(_is_section, get_args(field.annotation)):
                yield from _settings_of(part, prefix=f"{prefix}{name}.")


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def allowed_values(annotation: Any) -> list[str]:
    """The values that a type names, also within a list or a union."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    found = [choice for part in get_args(annotation) for choice in allowed_values(part)]
    return [*found, "true", "false"] if found and bool in get_args(annotation) else found
