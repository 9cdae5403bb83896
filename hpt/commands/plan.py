"""`hpt plan`: the memory that a run will need, and whether it fits."""

from __future__ import annotations

import argparse

import hpt
from hpt.commands.arguments import CommandParser
from hpt.support.terminal import print_results

HELP = "predicted memory of a recipe, part by part, and whether it fits"
DOES_NOT_FIT = 1


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
The memory that a run will need, from its recipe and its model's config only; nothing is loaded.
The hardware is that of the recipe (hardware.*), else this machine. Exit code 1 if the run does not fit."""
    parser.epilog = """\
examples:
  hpt plan my-recipe.yaml hardware.gpu_memory_gib=80
  hpt plan my-recipe.yaml engine=deepspeed deepspeed.stage=3 hardware.gpus=8 hardware.gpu_memory_gib=80
"""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe")


def run(options: argparse.Namespace) -> int:
    from hpt.config.recipe import parse_override

    plan = hpt.plan(options.recipe, **dict(map(parse_override, options.settings)))
    print_results(*plan.parts())
    return 0 if plan.fits else DOES_NOT_FIT
