"""`hpt serve`: vLLM's server for the rollouts of a run."""

from __future__ import annotations

import argparse
import logging
import secrets
import shlex

from hpt.commands.arguments import CommandParser, positive_int

HELP = "vLLM's server for the rollouts of a run, on its own GPUs"

logger = logging.getLogger(__name__)


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
Start vLLM's OpenAI server with the model and the rollout settings of a recipe. It has dummy weights until the trainer
(hpt train RECIPE rollout.engine=vllm rollout.vllm.url=http://HOST:PORT) sends the policy's. Its key is the environment
variable VLLM_API_KEY, which the trainer needs, too; where it is not set, one is made and shown."""
    parser.epilog = """\
examples:
  hpt serve my-recipe.yaml
  CUDA_VISIBLE_DEVICES=4,5 hpt serve my-recipe.yaml rollout.vllm.tensor_parallel=2 --port 8001
  hpt serve my-recipe.yaml --print
"""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, as for hpt train")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    parser.add_argument("--port", type=positive_int, default=8000, help="default: 8000")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print vLLM's command, start nothing")


def run(options: argparse.Namespace) -> int:
    import os

    from hpt.config.recipe import load_config
    from hpt.rollout.vllm.guard import KEY_VARIABLE
    from hpt.rollout.vllm.serve import check_plugin, is_loopback, run_in_place, server_command, server_settings
    from hpt.support.device import pick_device
    from hpt.support.optional_packages import require

    fixed = ["rollout.engine=vllm", f"rollout.vllm.url=http://{options.host}:{options.port}"]
    config = load_config(options.recipe, [*options.settings, *fixed, "rollout.vllm.sleep_level=0"])
    device = pick_device(config.device)
    command = server_command(config, device, options.host, options.port)
    settings = server_settings(config, device)
    in_words = shlex.join([f"{name}={value}" for name, value in settings.items()] + command)
    if options.only_print:
        print(in_words)
        return 0
    require("vllm", "hpt serve", "'hpt[vllm]'")
    check_plugin(config, device)
    if not is_loopback(options.host):
        logger.warning(
            f"--host {options.host}: other machines reach this server, and who has its key can change the weights; "
            "requests are not encrypted"
        )
    logger.info(f"Starting vLLM (with {KEY_VARIABLE} set): {in_words}")
    if not os.environ.get(KEY_VARIABLE):
        os.environ[KEY_VARIABLE] = secrets.token_urlsafe(32)
        print(f"export {KEY_VARIABLE}={os.environ[KEY_VARIABLE]}   # where the trainer is started", flush=True)
    run_in_place(command, settings)
    raise AssertionError("unreachable: vLLM has replaced this process")
