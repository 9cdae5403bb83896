"""YAML as recipes may have it: plain values, no key twice, nothing that contains itself."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

DEEPEST = 50
"""Levels of nesting; recipes have about five."""


def load_yaml(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError says what is wrong with it, and where."""
    try:
        value = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except ValueError as error:  # such as a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from error
    _check_depth(value)
    return value


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(
                    f"{key.value!r} is there twice, in lines {lines[key.value]} and {key.start_mark.line + 1}"
                )
            if isinstance(key.value, str):
                lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


# A date is text: no setting is one, and a folder may have its name.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep, or contains itself")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        _check_depth(each, depth + 1)
