"""`hpt serve`: vLLM's server for the rollouts of a run."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import shlex
import sys

from hpt.commands.arguments import CommandParser, port
from hpt.support.errors import ConfigError

HELP = "vLLM's server for the rollouts of a run, on its own GPUs"

logger = logging.getLogger(__name__)


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
Start vLLM's OpenAI server with the model and the rollout settings of a recipe. It has dummy weights until the trainer
(hpt train RECIPE rollout.engine=vllm rollout.vllm.url=http://HOST:PORT) sends the policy's. Its key is the environment
variable VLLM_API_KEY, which the trainer needs, too; where it is not set, one is made and shown on the terminal."""
    parser.epilog = """\
examples:
  hpt serve my-recipe.yaml
  CUDA_VISIBLE_DEVICES=4,5 hpt serve my-recipe.yaml rollout.vllm.tensor_parallel=2 --port 8001
  hpt serve my-recipe.yaml device=cuda --print
"""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, as for hpt train")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    parser.add_argument("--port", type=port, default=8000, help="default: 8000")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print vLLM's command, start nothing")


def run(options: argparse.Namespace) -> int:
    from hpt.config.recipe import load_config
    from hpt.rollout.vllm.arguments import check_options
    from hpt.rollout.vllm.guard import KEY_VARIABLE, read_key
    from hpt.rollout.vllm.serve import check_plugin, is_loopback, run_in_place, server_command, server_settings
    from hpt.support.device import pick_device
    from hpt.support.optional_packages import require

    host = f"[{options.host}]" if ":" in options.host else options.host  # IPv6
    fixed = ["rollout.engine=vllm", f"rollout.vllm.url=http://{host}:{options.port}"]
    config = load_config(options.recipe, [*options.settings, *fixed, "rollout.vllm.sleep_level=0"])
    device = pick_device(config.device, here=not options.only_print)
    command = server_command(config, device, options.host, options.port)
    settings = server_settings(config, device)
    in_words = shlex.join([f"{name}={value}" for name, value in settings.items()] + command)
    if options.only_print:
        print(in_words)
        return 0
    require("vllm", "hpt serve", "'hpt[vllm]'")
    environment = {**os.environ, **settings}  # before vLLM is imported, which is set up for this process then
    if config.rollout.vllm.options:
        check_options(config)
    check_plugin(config, device)
    if read_key() is None:
        environment[KEY_VARIABLE] = _new_key(KEY_VARIABLE)
    if not is_loopback(options.host):
        logger.warning(
            f"--host {options.host}: other machines reach this server, and who has its key can change the weights; "
            "requests are not encrypted"
        )
    logger.info(f"Starting vLLM (with {KEY_VARIABLE} set): {in_words}")
    run_in_place(command, environment)
    raise AssertionError("unreachable: vLLM has replaced this process")


def _new_key(variable: str) -> str:
    """A key, shown on the terminal. ConfigError where there is none: the key must not get into a file."""
    terminal = next((stream for stream in (sys.stdout, sys.stderr) if stream.isatty()), None)
    if terminal is None:
        raise ConfigError(
            f"the environment variable {variable} is not set, and there is no terminal to show a new key on: set it "
            f"here and where the trainer is started, as in export {variable}=$(openssl rand -hex 32)"
        )
    key = secrets.token_urlsafe(32)
    print(f"export {variable}={key}   # where the trainer is started", file=terminal, flush=True)
    return key
