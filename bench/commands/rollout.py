"""Rollouts by vLLM, with random weights: tokens a second beside vLLM's server alone, seconds of sync, sleep and wake.

Each case runs in its own process, and results are written after each:

- vllm serve: vLLM's server with dummy weights and nothing else, asked for the rollouts of a step.
- in process: two steps of hpt's trainer with vLLM asleep while it trains. The second is measured: rollouts, going to
  sleep, waking up with the policy's weights or adapters, and the whole step.
- server: the same with `hpt serve` beside the trainer.

Few responses of a model with random weights end before the limit. This has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.rollout import RolloutEngine, Sampling
from hpt.rollout.vllm.completions import Completions
from hpt.rollout.vllm.connection import ServerConnection
from hpt.rollout.vllm.engine import VllmEngine
from hpt.rollout.vllm.guard import KEY_VARIABLE
from hpt.rollout.vllm.requests import requests_for
from hpt.rollout.vllm.responses import logprobs_mode
from hpt.support.device import pick_device
from hpt.support.errors import HptError
from hpt.training.trainer import Trainer

from ..commit import last_commit
from ..output import output_path
from ..training.synthetic import REWARD, Renderer, random_questions, synthetic_trainer, write_random_model
from .train import MODELS, architecture_of

CASES = ("vllm serve", "in process", "server")
PROMPT = 256  # tokens


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="qwen2.5-1.5b")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--questions", type=int, default=32, help="of a step, with 8 rollouts each (default 32)")
    parser.add_argument("--tokens", type=int, default=1024, help="longest response (default 1024)")
    parser.add_argument("--memory-share", type=float, default=0.4, help="of the GPU, for vLLM (default 0.4)")
    parser.add_argument("--quantization", choices=["nf4"], help="4-bit weights, in vLLM too")
    parser.add_argument("--seconds", type=int, default=240, help="time limit per case (default 240)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=output_path, default=Path("bench/results/rollout"), help="write OUT.json")
    args = parser.parse_args(argv)
    if args.case:
        print(json.dumps(run_case(args.case, args, args.folder)))
        return 0
    device = pick_device("auto")
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "commit": last_commit("hpt", "bench"),
        "command": " ".join(["python -m bench rollout", *argv]),
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(architecture_of(args.model), torch.bfloat16, device.type, Path(folder))
        for case in args.cases:
            results[case] = _in_own_process(case, argv, folder, args.seconds)
            print(case, json.dumps(results[case]), flush=True)
            args.out.with_suffix(".json").write_text(json.dumps({**about, "cases": results}, indent=1) + "\n")
    return 0


def _in_own_process(case: str, argv: list[str], folder: str, seconds: int) -> dict[str, Any]:
    """What the process of a case printed, or how it failed."""
    command = [sys.executable, "-m", "bench", "rollout", *argv, "--case", case, "--folder", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {seconds} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def run_case(case: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if case == "in process":
        return measured_step(_config(args, folder))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    os.environ[KEY_VARIABLE] = secrets.token_urlsafe(16)
    config = _config(args, folder, port)
    with _server(config, folder, port):
        return served_alone(config) if case == "vllm serve" else measured_step(config)


def _config(args: argparse.Namespace, folder: Path, port: int | None = None) -> Config:
    lora = {"rank": 32}
    vllm: dict[str, Any] = {"memory_share": args.memory_share}
    if port is None:
        vllm |= {"adapters": "lora", "sleep_level": 1 if args.quantization else 2, "quantization": args.quantization}
    else:
        vllm |= {"url": f"http://127.0.0.1:{port}", "weight_transfer": "ipc" if torch.cuda.is_available() else "auto"}
    return build_config(
        {
            "output": str(folder / "run"),
            "steps": 10,
            "model": {
                **{"path": str(folder), "dtype": "bfloat16", "gradient_checkpointing": True, "lora": lora},
                "quantization": args.quantization,
            },
            "data": {"train": "none", "max_prompt_tokens": PROMPT},
            "verify": {"function": REWARD, "workers": 2},
            "rollout": {"engine": "vllm", "n": 8, "max_tokens": args.tokens, "vllm": vllm},
            "batch": {"questions": args.questions, "tokens": max(4096, PROMPT + args.tokens)},
        },
        source="bench rollout",
    )


@contextmanager
def _server(config: Config, folder: Path, port: int) -> Iterator[None]:
    """`hpt serve` until the block ends. HptError with its last line if it ends before it is ready."""
    recipe, log = folder / "serve.yaml", folder / "serve.log"
    recipe.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    command = [sys.executable, "-m", "hpt", "serve", str(recipe), "--port", str(port)]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            connection = ServerConnection(config)
            while True:
                try:
                    connection.probe()
                    break
                except HptError:
                    if process.poll() is not None:
                        raise HptError(f"hpt serve ended: {log.read_text().splitlines()[-1]}") from None
                    time.sleep(1)
            yield
        finally:
            process.terminate()


def served_alone(config: Config) -> dict[str, Any]:
    """Tokens a second of the rollouts of a step by a server that nobody sends weights."""
    vocabulary = architecture_vocabulary(config)
    prompts = Renderer(vocabulary, PROMPT, 1).encode_prompts(random_questions(config))
    sampling = Sampling.for_training(config)
    completions = Completions(ServerConnection(config), [vocabulary - 1], vocabulary, logprobs_mode(config))

    def sample(seed: int) -> int:
        requests = list(requests_for(prompts, sampling.n, seed))
        return sum(len(rollout.tokens) for _, rollout in completions.sample(requests, sampling, lambda: None))

    sample(seed=0)
    tokens, seconds = timed(lambda: sample(seed=1))
    return {"tokens_per_second": tokens / seconds, "tokens": tokens, "rollout_seconds": seconds}


def measured_step(config: Config) -> dict[str, Any]:
    """The second step of hpt's trainer, and how long its engine takes to sleep and to wake up with new weights."""
    with synthetic_trainer(config, prompt=PROMPT, made_up=False) as trainer:
        trainer.step(1)
        metrics, experiences = trainer.step(2)
        tokens = sum(len(rollout.tokens) for experience in experiences for rollout in experience.rollouts)
        seconds = {key.removeprefix("time/"): value for key, value in metrics.items() if key.startswith("time/")}
        return {
            "tokens_per_second": tokens / seconds["rollout"],
            "tokens": tokens,
            "seconds": seconds,
            "mismatch_kl": metrics.get("rollout/mismatch_kl"),
            **_engine_seconds(trainer, trainer.rollout_engine),
        }


def _engine_seconds(trainer: Trainer, engine: RolloutEngine) -> dict[str, float]:
    """Seconds to go to sleep; to wake up and take changed weights, with one token more; and of one token alone."""
    prompts, one = trainer.renderer.encode_prompts(trainer.questions[:1]), Sampling(1, 1)
    engine.generate(prompts, one, 0)
    _, generating = timed(lambda: engine.generate(prompts, one, 0))
    _, sleeping = timed(engine.sleep)
    engine.weights_changed()
    _, waking = timed(lambda: engine.generate(prompts, one, 0))
    found = {"sync_seconds": waking - generating}
    return {"sleep_seconds": sleeping, **found} if isinstance(engine, VllmEngine) else found


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - begun


def architecture_vocabulary(config: Config) -> int:
    return int(json.loads((Path(config.model.path) / "config.json").read_text())["vocab_size"])
