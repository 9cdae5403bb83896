"""Tokens a second of transformers' ways to generate: fixed batches, a static cache, continuous batching.

Models have random weights. So many tokens end a response that lengths are spread as in a run: exponentially, with a
mean of about a third of the limit. Runs are interleaved; the best of each is compared, and the spread is noted.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hpt.rollout import RolloutEngine, Sampling, TransformersEngine
from hpt.rollout import transformers as fixed_batches
from hpt.rollout.continuous import ContinuousEngine
from hpt.support.device import pick_device

from ..commit import last_commit
from ..output import output_path

# The shape of the model; then sequences at once, prompts, and the longest response.
SHAPES: dict[str, tuple[dict[str, int], int, int, int]] = {
    "1M": ({"vocab_size": 64, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}, 128, 256, 48),
    "11M": ({"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8}, 64, 128, 128),
    "SmolLM2-135M": (
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        *(32, 64, 96),
    ),
}
WAYS = ("fixed", "static cache", "continuous")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench generate", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=output_path, help="write OUT.json and OUT.md")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    results = {name: measure(name, args.repeat, device) for name in args.shapes}
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": last_commit("hpt", "bench"),
    }
    if args.out:
        args.out.with_suffix(".json").write_text(json.dumps({**about, "tokens a second": results}, indent=1) + "\n")
        head = ["| model | " + " | ".join(WAYS) + " |", "|---|" + "---|" * len(WAYS)]
        rows = [_row(name, result) for name, result in results.items()]
        args.out.with_suffix(".md").write_text("\n".join([*head, *rows]) + "\n")
    return 0


def measure(name: str, repeat: int, device: torch.device) -> dict[str, list[float]]:
    """Tokens a second of each run, by way."""
    shape, batch_size, count, max_tokens = SHAPES[name]
    torch.manual_seed(0)
    settings: dict[str, Any] = {**shape, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings)).to(device)
    draw = random.Random(0)
    vocabulary = shape["vocab_size"]
    stop_ids = draw.sample(range(vocabulary), max(1, 3 * vocabulary // max_tokens))
    prompts = [[draw.randrange(vocabulary) for _ in range(draw.randint(8, 24))] for _ in range(count)]
    sampling = Sampling(n=1, max_tokens=max_tokens)
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(repeat):
        for way in WAYS:
            engine = _engine(way, model, stop_ids, batch_size)
            begun = time.perf_counter()
            with patch.object(fixed_batches, "generation_config", _configuration(way)):
                groups = engine.generate(prompts, sampling, seed)
            seconds = time.perf_counter() - begun
            speeds[way].append(sum(len(rollout.tokens) for group in groups for rollout in group) / seconds)
            print(f"{name}: {way}, {speeds[way][-1]:.0f} tokens/s", flush=True)
    return speeds


def _engine(way: str, model: PreTrainedModel, stop_ids: list[int], batch_size: int) -> RolloutEngine:
    kind = ContinuousEngine if way == "continuous" else TransformersEngine
    return kind(model, stop_ids=stop_ids, batch_size=batch_size)


def _configuration(way: str) -> Any:
    """hpt's own settings of `generate`; with a static cache for that way, which hpt does not use."""
    make = fixed_batches.generation_config

    def with_static_cache(*arguments: Any) -> Any:
        made = make(*arguments)
        made.cache_implementation = "static"
        return made

    return with_static_cache if way == "static cache" else make


def _row(name: str, speeds: dict[str, list[float]]) -> str:
    cells = [f"{max(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})" for found in speeds.values()]
    return f"| {name} | {' | '.join(cells)} |"
