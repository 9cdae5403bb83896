"""A model's config.json with the fields that a recipe changes (`model.config`).

Trainer, vLLM and `hpt plan` all read a model's config here, so that they agree on it.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hpt.support.errors import ConfigError

SHAPE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
"""Fields that decide which weights a model has, by transformers' usual names."""

SET_ELSEWHERE = {
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attention",
    "quantization_config": "model.quantization",
}
"""Fields with a setting of their own."""

# transformers 5 keeps them in `rope_parameters`, wherever config.json has them.
_ROPE_NUMBERS = ("rope_theta", "partial_rotary_factor")
_ROPE_MAPPINGS = ("rope_scaling", "rope_parameters")


def read_model_config(
    path: str,
    changes: Mapping[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> PreTrainedConfig:
    """The config of a model's folder, hub name or JSON file, as if its config.json had `changes`.

    changes: fields and their new values; nested configs and the rotary parameters as mappings of what changes in them.
    OSError or ValueError if there is no config. ConfigError for a field that the config does not have, for a value that
    it refuses, and for a field that would no longer fit the weights.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=local_files_only)
    if not changes:
        return config
    content, _ = PreTrainedConfig.get_config_dict(path, local_files_only=local_files_only)
    new_content = _with_changes(config, content, changes, "model.config")
    try:
        return type(config).from_dict(new_content, name_or_path=path)
    except Exception as error:  # every config class checks values in its own way
        reason = " ".join(str(error).split())
        raise ConfigError(f"model.config = {dict(changes)}: {path} does not take it: {reason}") from error


def changed_entries(path: str, changes: Mapping[str, Any], *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The entries of a model's config that `changes` alter, with their whole new values; as `read_model_config`."""
    before = read_model_config(path, trust_remote_code=trust_remote_code).to_dict()
    after = read_model_config(path, changes, trust_remote_code=trust_remote_code).to_dict()
    return {key: value for key, value in after.items() if value != before.get(key)}


def _with_changes(
    config: PreTrainedConfig, content: Mapping[str, Any], changes: Mapping[str, Any], setting: str
) -> dict[str, Any]:
    """`content` of a config.json with `changes`. config: read from it. setting: where the changes stand in a recipe."""
    changed = copy.deepcopy(dict(content))
    has_rope = hasattr(config, "rope_parameters")
    rope = copy.deepcopy(config.rope_parameters or {}) if has_rope else {}
    for name, value in changes.items():
        field = config.attribute_map.get(name, name)
        current = getattr(config, field, None)
        _check_name(config, name, f"{setting}.{name}", has_rope)
        if field in {config.attribute_map.get(shape, shape) for shape in SHAPE_FIELDS} and value != current:
            raise ConfigError(
                f"{setting}.{name} = {value!r}: the model's weights are for {current!r}, and this field decides their "
                "number or shape: it cannot be changed"
            )
        if has_rope and name in _ROPE_NUMBERS:
            _set_rope_number(rope, name, value, setting)
            if name in changed:
                changed[name] = value
        elif has_rope and name in _ROPE_MAPPINGS:
            _merge_rope(rope, value, f"{setting}.{name}")
        elif isinstance(current, PreTrainedConfig) and isinstance(value, Mapping):
            changed[field] = _with_changes(current, changed.get(field) or {}, value, f"{setting}.{name}")
        elif isinstance(current, Mapping) and isinstance(value, Mapping):
            changed[field] = {**current, **value}
        else:
            changed[field] = value
    if has_rope and not changes.keys().isdisjoint((*_ROPE_NUMBERS, *_ROPE_MAPPINGS)):
        for name in ("rope_theta", *_ROPE_MAPPINGS):
            changed.pop(name, None)
        changed["rope_parameters"] = rope
    return changed


def _check_name(config: PreTrainedConfig, name: str, setting: str, has_rope: bool) -> None:
    """ConfigError for a field that the config does not have, or that has a setting of its own."""
    if name in SET_ELSEWHERE:
        raise ConfigError(f"{setting}: this field has a setting of its own, {SET_ELSEWHERE[name]}")
    known = {key for key in config.to_dict() if not key.startswith("_") and key not in SET_ELSEWHERE}
    known |= config.attribute_map.keys()
    if has_rope:
        known |= {*_ROPE_NUMBERS, *_ROPE_MAPPINGS}
    if name in known:
        return
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; it has {', '.join(sorted(known))}"
    raise ConfigError(f"{setting}: {type(config).__name__} has no field {name!r}{hint}")


def _set_rope_number(rope: dict[str, Any], name: str, value: Any, setting: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"{setting}.{name} = {value!r}: should be a number above 0")
    by_layer_type = [key for key, entry in rope.items() if isinstance(entry, dict)]
    if by_layer_type:
        raise ConfigError(
            f"{setting}.{name}: this model has rotary embeddings for each type of layer ({', '.join(by_layer_type)}): "
            f"say which, as in {setting}.rope_parameters={{{by_layer_type[0]}: {{{name}: {value}}}}}"
        )
    rope[name] = value


def _merge_rope(rope: dict[str, Any], value: Any, setting: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{setting} = {value!r}: should be a mapping, as in {{rope_type: yarn, factor: 4.0}}")
    for key, entry in value.items():
        key = "rope_type" if key == "type" else key  # the older name
        if isinstance(entry, Mapping) and isinstance(rope.get(key), dict):
            rope[key] |= entry
        else:
            rope[key] = entry
