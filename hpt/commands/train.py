"""`hpt train`: trains a model by a recipe, or resumes a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from hpt.commands.arguments import CommandParser
from hpt.support.errors import HptError

HELP = "train by a recipe, or resume a run"


def add_arguments(parser: CommandParser) -> None:
    parser.description = "Train a model by a recipe: a YAML file or the name of a shipped one."
    parser.make_epilog = _recipes_and_settings
    parser.add_argument("recipe", nargs="?", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe: optimizer.lr=1e-5")
    parser.add_argument(
        "--resume", metavar="DIR", type=Path, help="resume the run in DIR from its last complete checkpoint"
    )


def run(options: argparse.Namespace, console: Console) -> int:
    from hpt.config.recipe import load_config
    from hpt.report import accuracy_table, summary_figure
    from hpt.support.distributed import launched
    from hpt.training.run import resume, start

    if options.resume is not None:
        folder = options.resume
        # With --resume there is no recipe: what argparse takes for one is the first setting.
        settings = [options.recipe, *options.settings] if options.recipe else options.settings
        code = resume(folder, settings, console)
    elif options.recipe is None:
        raise HptError("hpt train needs a recipe, or --resume DIR; see hpt train --help")
    else:
        config = load_config(options.recipe, options.settings)
        folder = Path(config.output)
        code = start(config, console)
    if code == 0 and launched().main:
        Console().print(accuracy_table(folder))
        figure = summary_figure([folder], folder / "figures" / "summary.png")
        console.print(f"Run: {folder}   figure: {figure}   more: hpt report {folder}", soft_wrap=True)
    return code


def _recipes_and_settings() -> str:
    from hpt.config.recipe import describe_settings, shipped_methods, shipped_recipes

    return f"""\
recipes: {", ".join(shipped_recipes())}
methods (method=NAME): {", ".join(shipped_methods())}

settings, with their defaults:
{describe_settings()}

examples:
  hpt train demo
  hpt train demo method=grpo seed=1 output=runs/grpo-1
  hpt train smollm2 steps=10
  hpt train --resume runs/demo
"""
