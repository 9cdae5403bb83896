"""YAML of recipes: what would be taken silently for something else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.config.yaml_text import DEEPEST, load_yaml
from hpt.support.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nsteps: 2\nseed: 3\n", "'seed' is there twice, in lines 1 and 3"),
        ("optimizer:\n  lr: 1\n  lr: 2\n", "'lr' is there twice, in lines 2 and 3"),
        ("seed: " + "1" * 5000, "Exceeds the limit"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deep"),
        ("a: " + "[" * DEEPEST + "1" + "]" * DEEPEST, f"more than {DEEPEST} levels deep"),
        ("a: &a [*a]", "or contains itself"),
    ],
)
def test_a_recipe_that_is_not_plain_is_refused(text: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe.yaml: is not valid YAML: ") as error:
        load_config(recipe)
    assert message in str(error.value)


def test_what_is_plain_is_read() -> None:
    text = "base: &base {lr: 1, decay: 2}\nown:\n  <<: *base\n  lr: 3\nlist: [{lr: 1}, {lr: 2}]\n1: a\n"
    own = {"lr": 3, "decay": 2}
    assert load_yaml(text) == {"base": {"lr": 1, "decay": 2}, "own": own, "list": [{"lr": 1}, {"lr": 2}], 1: "a"}
    assert load_yaml("output: 2026-01-01") == {"output": "2026-01-01"}
    depth = DEEPEST - 1
    assert load_yaml("a: " + "[" * depth + "]" * depth) == yaml.safe_load("a: " + "[" * depth + "]" * depth)


def test_a_setting_given_twice_on_the_command_line_is_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match="'lr' is there twice"):
        load_config(world, ["optimizer={lr: 1e-3, lr: 1e-4}"])


@pytest.mark.parametrize("name", ["a[b]", "[", "<x>", "optimizer.<lr>", "int"])
def test_an_unknown_setting_of_any_name_is_named(name: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(world), f"{name}=1"]) == 2
    assert f"{name}: there is no such setting" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "setting", ["rollout.temperature=1e-300", "threads=100000", "verify.workers=100000", "reward_calls.workers=2000"]
)
def test_numbers_without_use_are_refused(setting: str, world: Path) -> None:
    key, _, value = setting.partition("=")
    with pytest.raises(ConfigError, match=rf"{key} = '?{value}'?: .*(less|greater) than or equal to"):
        load_config(world, [setting])
