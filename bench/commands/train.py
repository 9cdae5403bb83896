"""Whole training steps: on a CPU beside TRL's GRPO; with --random-weights, models of real size on a GPU.

Without options, a step of hpt's trainer and one of TRL's GRPO on the same rows, at SmolLM2-135M's shape on a CPU. It is
`bench adopt` with the options that are printed above its table, and takes about ten minutes.

With --random-weights, hpt's trainer on models of real size: tokens per second, peak memory and the plan, time per
phase, MFU. A step has rollouts (made up, or sampled by transformers), verification, gate, loss and update. Each case
runs in its own process, so that running out of memory is a result. Results are written after each.

MFU = (6 P + 6 L H T) tokens / (seconds of training x peak FLOP/s) for P weights, L layers of width H and rows of T
tokens (causal). LoRA counts 4 P instead of 6 P. What checkpointing computes again is not counted.

"plain logits" is the same step with the model's full logits instead of `upge`. "TRL's GRPO" is a step of TRL's
GRPOTrainer (pip install trl) with the same weights, LoRA, questions and limits, and random rewards. It trains on all
its rollouts, while hpt trains on those with an advantage and on the demonstration of one question. Of TRL's step only
two phases can be measured, rollout and train (which starts at its rewards), and the plan does not apply to it.

With --random-weights this has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, Qwen2Config

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.config.sections.model import ModelConfig
from hpt.memory import make_plan
from hpt.memory.meta_model import read_architecture
from hpt.support.cards import CARDS, card_of_device
from hpt.support.optional_packages import require

from ..output import output_path
from ..training.plain_loss import PlainLoss
from ..training.synthetic import REWARD, synthetic_trainer, write_random_model
from . import adopt

MODELS = {
    "qwen2.5-1.5b": "Qwen/Qwen2.5-Math-1.5B",
    "qwen2.5-7b": "Qwen/Qwen2.5-Math-7B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "tiny": None,
}
PROMPT = 64  # tokens
LORA: dict[str, Any] = {"lora": {"rank": 32}}
EIGHT_BIT: dict[str, Any] = {"optimizer": {"states": "8bit"}}
PLAIN = ", plain logits"
TRL = ", TRL's GRPO"
# All rollouts of a step (4 questions) are sampled at once, as in TRL.
DRAWN: dict[str, Any] = {"model": LORA, "rollout": {"max_tokens": 256, "batch_size": 32}}
# Memory limit in GiB (None: no limit), settings, whether rollouts are made up. The most informative cases come first.
CASES: dict[str, tuple[float | None, dict[str, Any], bool]] = {
    "80 GB, all weights, 8-bit states": (None, EIGHT_BIT, True),
    f"80 GB, all weights, 8-bit states{PLAIN}": (None, EIGHT_BIT, True),
    "48 GB, LoRA": (44, {"model": LORA}, True),
    f"48 GB, LoRA{PLAIN}": (44, {"model": LORA}, True),
    "24 GB, QLoRA": (22, {"model": {**LORA, "quantization": "nf4"}}, True),
    "48 GB, LoRA, drawn rollouts": (44, DRAWN, False),
    f"48 GB, LoRA, drawn rollouts{TRL}": (44, DRAWN, False),
}
# The options of `bench adopt`: a step of the size that two CPU cores do in half a minute.
ON_A_CPU = [
    *("--device", "cpu", "--cases", "trl-grpo", "--shape", "smollm2-135m"),
    *("--rows", "8", "--length", "64", "--micro-batches", "2", "--repeats", "3", "--seconds", "600"),
]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench train", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="qwen2.5-7b")
    parser.add_argument("--random-weights", action="store_true", help="a model of real size, on a GPU")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--tokens", type=int, default=4096, help="longest response (default 4096)")
    parser.add_argument("--questions", type=int, default=4, help="questions per step (default 4, 8 rollouts each)")
    parser.add_argument("--seconds", type=int, default=180, help="time limit per case (default 180)")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit of all cases (default 9.5)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=output_path, help="OUT.json and OUT.md (default bench/results/train or train-cpu)"
    )
    args = parser.parse_args(argv)
    if not args.random_weights:
        if other := [option for option in argv if option.startswith("--") and not option.startswith("--out")]:
            parser.error(f"argument {other[0]}: only with --random-weights")
        return adopt.main([*ON_A_CPU, "--out", str(args.out or "bench/results/train-cpu")])
    args.out = args.out or Path("bench/results/train")
    if args.case:
        print(json.dumps(run_case(args, args.folder)))
        return 0
    end = time.monotonic() + 60 * args.minutes
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_random_model(architecture_of(args.model), torch.bfloat16, device, Path(folder))
        torch.cuda.empty_cache()
        options = ["--tokens", str(args.tokens), "--questions", str(args.questions), "--folder", folder]
        for name in args.cases:
            left = int(end - time.monotonic())
            if left <= 0:
                rows.append({"case": name, "model": args.model, "failed": f"not begun within {args.minutes:g} minutes"})
                write(rows, args.out)
                continue
            command = [
                sys.executable,
                "-m",
                "bench",
                "train",
                "--random-weights",
                "--model",
                args.model,
                "--case",
                name,
            ]
            rows.append({"case": name, "model": args.model, **_run([*command, *options], min(args.seconds, left))})
            write(rows, args.out)
            print(table(rows).splitlines()[-1], flush=True)
    return 0


def _run(command: list[str], seconds: int) -> dict[str, Any]:
    """What the process of a case printed, or how it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {seconds} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def architecture_of(model: str) -> PretrainedConfig:
    path = MODELS[model]
    if path is None:
        return Qwen2Config(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    return read_architecture(ModelConfig(path=path)).config


def _config(args: argparse.Namespace, folder: Path, changes: dict[str, Any], cap: float | None) -> Config:
    settings: dict[str, Any] = {
        "output": str(folder / "run"),
        "steps": 10,
        "model": {"path": str(folder), "dtype": "bfloat16", "gradient_checkpointing": True},
        "data": {"train": "none"},
        "verify": {"function": REWARD, "workers": 2},
        "rollout": {"n": 8, "max_tokens": args.tokens, "batch_size": 8},
        "batch": {"questions": args.questions, "tokens": max(16384 if args.tokens > 1024 else 0, args.tokens + 64)},
        "hardware": {"gpu_memory_gib": cap} if cap and torch.cuda.is_available() else {},
    }
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values
    settings["rollout"]["max_tokens"] = min(settings["rollout"]["max_tokens"], args.tokens)
    return build_config(settings, source="bench train")


def run_case(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One step to warm up, and one that is measured."""
    cap, changes, made_up = CASES[args.case]
    trl = args.case.endswith(TRL)
    if trl:
        require("trl", f'the case "{args.case}"', "trl")
    config = _config(args, folder, changes, cap)
    plan = make_plan(config, prompt_tokens=PROMPT)
    cuda = torch.cuda.is_available()
    if cuda and cap:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))
    if trl:
        from ..training.trl_step import grpo_step

        step = grpo_step(config, prompt=PROMPT)
    else:
        step = _hpt_step(config, made_up, args.case.endswith(PLAIN))
    shape = architecture_of(args.model)
    trained, seconds = step["trained_tokens"], step["seconds"]["train"]
    attention = 6 * shape.num_hidden_layers * shape.hidden_size * config.rollout.max_tokens
    flops = trained * ((4 if config.model.lora else 6) * plan.parameters + attention)
    name = torch.cuda.get_device_name() if cuda else "CPU"
    card = card_of_device(name, torch.cuda.get_device_properties(0).total_memory) if cuda else None
    peak = CARDS[card].flops_16_bit if card else None
    return {
        "device": name,
        "torch": torch.__version__,
        **step,
        "train_tokens_per_second": trained / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "planned_bytes": None if trl else plan.peak,
    }


def _hpt_step(config: Config, made_up: bool, plain: bool) -> dict[str, Any]:
    """The second step of hpt's trainer: how many tokens it trained on, and the seconds of its phases."""
    with synthetic_trainer(config, prompt=PROMPT, made_up=made_up) as trainer:
        if plain:
            trainer.policy.loss = PlainLoss(trainer.policy)  # type: ignore[method-assign]
        trainer.step(1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        metrics, experiences = trainer.step(2)
    rows = [row for update in trainer.rows(experiences) for row in update]
    trained = sum(len(row.tokens) for row in rows if row.has_signal)
    times = {key.removeprefix("time/"): value for key, value in metrics.items() if key.startswith("time/")}
    return {"trained_tokens": trained, "seconds": times}


def table(rows: list[dict[str, Any]]) -> str:
    """The cases as a Markdown table."""
    lines = [
        "| model | case | trained tokens/s | MFU | peak GiB | planned GiB | share of the step's time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['model']} | {row['case']} | {row['failed']} | | | | |")
            continue
        whole = row["seconds"]["step"]
        shares = ", ".join(f"{k} {v / whole:.0%}" for k, v in row["seconds"].items() if k != "step")
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else ""
        peak = f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else ""
        planned = f"{row['planned_bytes'] / 2**30:.1f}" if row["planned_bytes"] else ""
        speed = f"{row['train_tokens_per_second']:.0f}"
        lines.append(f"| {row['model']} | {row['case']} | {speed} | {mfu} | {peak} | {planned} | {shares} |")
    return "\n".join(lines)


def write(rows: list[dict[str, Any]], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(rows) + "\n")
