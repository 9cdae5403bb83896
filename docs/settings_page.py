"""Writes docs/settings.md from the settings' own descriptions: python docs/settings_page.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import yaml
from pydantic import BaseModel

from hpt.config.schema import Config
from hpt.config.sections.section import Section
from hpt.config.words import allowed_values

INTRODUCTION = """\
# Settings

Every setting of a recipe, with its default. `hpt train --help` prints the same list. [Recipes](recipes.md) explains how
they play together.
"""


def page() -> str:
    run = {name: field for name, field in Config.model_fields.items() if not _is_section(field.annotation)}
    sections = {name: field.annotation for name, field in Config.model_fields.items() if name not in run}
    parts = [INTRODUCTION, "## The run\n", _table(_rows(Config, "", nested=False))]
    for name, section in sections.items():
        parts += [f"## {name}\n", _table(_rows(section, f"{name}."))]
    return "\n".join(parts)


def _rows(section: type[BaseModel], prefix: str, *, nested: bool = True) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            if nested:
                yield from _rows(field.annotation, f"{prefix}{name}.")
            continue
        default = "required"
        if not field.is_required():
            default = f"`{yaml.safe_dump(field.default, default_flow_style=True).splitlines()[0]}`"
        allowed = ", ".join(f"`{value}`" for value in allowed_values(field.annotation))
        notes = "; ".join(note for note in (allowed, field.description) if note)
        yield f"| `{prefix}{name}` | {default} | {notes} |".replace("\\boxed", "`\\boxed`")
        for part in get_args(field.annotation):
            if _is_section(part):  # an optional section, or a list of them
                number = ".0" if get_origin(field.annotation) is list else ""
                yield from _rows(part, f"{prefix}{name}{number}.")


def _table(rows: Iterator[str]) -> str:
    return "\n".join(["| setting | default | allowed; meaning |", "|---|---|---|", *rows, ""])


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page())
