"""The documentation is true: its code runs, its recipes load, its commands parse, what it links to and names exists."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pages import bench_commands, blocks, links, paths

from hpt.commands.main import make_parser
from hpt.config.recipe import load_config, merge
from hpt.config.schema import Config
from hpt.config.stages import stages_of
from hpt.support.named_functions import resolve
from hpt.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
REQUIRED = {
    "output": "run",
    "steps": 10,
    "model": {"path": "model"},
    "data": {"train": "questions.jsonl", "eval": "held_out.jsonl"},
}
"""What a part of a recipe on a page is tried with."""

PAGES = sorted([*ROOT.glob("docs/*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))])
READ_ONLY = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "kernels/README.md"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        path = folder / (block.title or f"block-{block.line}.{block.language}")
        path.write_text(block.text)
        if block.language == "yaml":
            check_recipe(path)
        elif block.language == "json":
            assert all(json.loads(line) for line in block.text.splitlines())
        elif block.language == "sh":
            for line in block.text.splitlines():
                check_command(line)
        elif block.language == "python" and block.runs and not block.title:
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


def check_recipe(path: Path) -> None:
    """A whole recipe, a part of one, or a method: every key exists, and the settings go together."""
    settings = yaml.safe_load(path.read_text())
    if not {"output", "extends"} & settings.keys():
        whole = copy.deepcopy(REQUIRED)
        merge(whole, settings)
        path = path.with_name(f"whole-{path.name}")
        path.write_text(yaml.safe_dump(whole))
    config = load_config(path)
    stages_of(config)
    for field, function in (("verify.function", config.verify.function), ("gate.function", config.gate.function)):
        if function:
            resolve(function, field=field)
    for reward in config.rewards:
        if reward.name != "verifier":
            resolve(reward.function, field="rewards")


def check_command(line: str) -> None:
    """A command of hpt with known options and settings, a target of the Makefile, or a command of bench."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "-m"] and words[2].startswith("hpt."):
        assert importlib.util.find_spec(words[2])
    elif words[:3] == ["python", "-m", "bench"]:
        assert (ROOT / "bench/commands" / f"{words[3]}.py").is_file()
    elif words[:1] == ["make"]:
        makefile = (ROOT / "Makefile").read_text()
        assert all(f"\n{target}:" in makefile for target in words[1:])
    elif "hpt" in words:
        options = make_parser().parse_args(words[words.index("hpt") + 1 :])
        if options.command in ("train", "plan", "serve"):
            check_settings(options.recipe, options.settings)


def check_settings(recipe: str | None, settings: list[str]) -> None:
    """The changes fit the recipe; with RECIPE, or after --resume, those of any recipe."""
    if recipe is not None and "=" in recipe:
        recipe, settings = None, [recipe, *settings]
    load_config("demo" if recipe in (None, "RECIPE") else recipe, settings)


@pytest.mark.parametrize("page", READ_ONLY, ids=name)
def test_what_a_page_links_to_and_names_exists(page: Path) -> None:
    missing = [target for target in links(page) if not (page.parent / target).exists()]
    missing += [path for path in paths(page) if not (ROOT / path).exists()]
    commands = [path.stem for path in (ROOT / "bench/commands").glob("*.py")]
    missing += [command for command in bench_commands(page) if command not in commands]
    assert not missing


def test_the_page_of_settings_is_up_to_date() -> None:
    assert (ROOT / "docs/settings.md").read_text() == module("docs/settings_page.py").page(), (
        "run: python docs/settings_page.py"
    )


def test_every_section_of_a_recipe_is_explained() -> None:
    text = (ROOT / "docs/recipes.md").read_text()
    assert [section for section in Config.model_fields if section not in text] == []


def test_the_picture_of_the_architecture_shows_every_room() -> None:
    drawing = module("docs/figures/architecture.py")
    rooms = {folder.parent.name for folder in (ROOT / "hpt").glob("*/__init__.py")}
    assert {*drawing.FLOW, *drawing.AROUND, *drawing.BANDS} == rooms


def test_the_calls_of_a_step_are_those_of_the_trainer() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    section = text[text.index("## How a step runs") : text.index("## What is passed on")]
    calls = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    source = inspect.getsource(Trainer.step)
    places = [source.index(f"self.{call}(") for call in calls]
    assert places == sorted(places)


def test_the_layers_are_those_that_lint_checks() -> None:
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    shown = [block.text.split("\n") for block in blocks(ROOT / "docs/architecture.md") if block.language == "text"]
    assert [*layers, ""] in shown


def test_the_table_of_extras_has_them_all() -> None:
    text = (ROOT / "docs/getting-started.md").read_text()
    table = text[text.index("| extra |") : text.index("## The first run")]
    first_column = " ".join(re.findall(r"^\| (`.+?) \|", table, re.MULTILINE))
    assert sorted(re.findall(r"`([\w-]+)`", first_column)) == sorted(pyproject()["project"]["optional-dependencies"])


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
