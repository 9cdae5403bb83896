"""`hpt plan`: the memory that a run will need, whether it fits, and how long its steps take."""

from __future__ import annotations

import argparse

import hpt
from hpt.commands.arguments import CommandParser, positive_int
from hpt.support.terminal import print_results

HELP = "predicted memory of a recipe, whether it fits, and the time of a step"
DOES_NOT_FIT = 1


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
The memory and the time that a run will need, from its recipe and its model's config only; nothing is loaded.
The hardware is that of the recipe (hardware.*), else this machine. Exit code 1 if the run does not fit."""
    parser.epilog = """\
examples:
  hpt plan my-recipe.yaml hardware.gpu_memory_gib=80
  hpt plan my-recipe.yaml hardware.gpu=A100-80 --response-tokens 3000
  hpt plan my-recipe.yaml engine=deepspeed deepspeed.stage=3 hardware.gpus=8 hardware.gpu_memory_gib=80
"""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument(
        "--response-tokens",
        type=positive_int,
        metavar="N",
        help="tokens of a response on average, for the time (default: a quarter of rollout.max_tokens)",
    )


def run(options: argparse.Namespace) -> int:
    from hpt.config.recipe import parse_override

    plan = hpt.plan(
        options.recipe, response_tokens=options.response_tokens, **dict(map(parse_override, options.settings))
    )
    print_results(*plan.parts())
    return 0 if plan.fits else DOES_NOT_FIT
