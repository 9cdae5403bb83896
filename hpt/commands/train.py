"""`hpt train`: trains a model by a recipe, or resumes a run."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import hpt
from hpt.commands.arguments import CommandParser
from hpt.support.errors import HptError
from hpt.support.launch import rank
from hpt.support.terminal import print_results

HELP = "train by a recipe, or resume a run"
INTERRUPTED = 130

logger = logging.getLogger(__name__)


def add_arguments(parser: CommandParser) -> None:
    parser.description = "Train a model by a recipe: a YAML file or the name of a shipped one."
    parser.make_epilog = _recipes_and_settings
    parser.add_argument("recipe", nargs="?", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe: optimizer.lr=1e-5")
    parser.add_argument(
        "--resume", metavar="DIR", type=Path, help="resume the run in DIR from its last complete checkpoint"
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although data, settings or threads have changed since; the run's records say what",
    )


def run(options: argparse.Namespace) -> int:
    from hpt.config.recipe import parse_override

    # With --resume there is no recipe: what argparse takes for one is the first setting.
    texts = [options.recipe, *options.settings] if options.resume and options.recipe else options.settings
    settings = dict(map(parse_override, texts))
    if options.resume is None and options.recipe is None:
        raise HptError("hpt train needs a recipe, or --resume DIR; see hpt train --help")
    recipe = None if options.resume else options.recipe
    run = hpt.train(recipe, resume=options.resume, accept_changes=options.accept_changes, **settings)
    if not run.finished:
        return INTERRUPTED
    if rank() == 0:
        _show_results(run)
    return 0


def _show_results(run: hpt.Run) -> None:
    from hpt.report import accuracy_table, summary_figure

    print_results(accuracy_table(run.folder))
    figure = summary_figure([run.folder], run.folder / "figures" / "summary.png")
    logger.info(f"Run: {run.folder}   figure: {figure}   more: hpt report {run.folder}")


def _recipes_and_settings() -> str:
    from hpt.config.recipe import shipped_methods, shipped_recipes
    from hpt.config.words import describe_settings

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
