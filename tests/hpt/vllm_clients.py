"""Clients of a vLLM server, or of its stand-in, and runs over it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from fake_vllm import FakeVllm
from transformers import AutoModelForCausalLM, PreTrainedModel

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.rollout import Rollout, Sampling
from hpt.rollout.vllm.client import VllmClient
from hpt.rollout.weights import named_weights

PROMPTS = [[5, 6, 7], [8], [9, 10, 11]]
STOPS = [1]  # the end token of the world's tokenizer
SAMPLING = Sampling(n=2, max_tokens=6)


def load(world: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(world.parent / "model", dtype=torch.float32)


def client_of(world: Path, url: str, model: PreTrainedModel, *settings: str) -> VllmClient:
    config = load_config(world, ["rollout.engine=vllm", f"rollout.vllm.url={url}", *settings])
    return VllmClient(
        config,
        partial(named_weights, model),
        stop_ids=STOPS,
        vocabulary=model.config.vocab_size,
        device=torch.device("cpu"),
        longest_prompt=3,
    )


def perturb(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def mismatch(model: PreTrainedModel, groups: list[list[Rollout]]) -> float:
    """Largest difference between the rollouts' log-probabilities and the model's."""
    worst = 0.0
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + rollout.tokens])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(rollout.tokens)[:, None])[:, 0]
            worst = max(worst, (expected - torch.tensor(rollout.logprobs)).abs().max().item())
    return worst


def train(world: Path, run: Path, url: str, *settings: str) -> int:
    fixed = [f"output={run}", "eval.every=0", "checkpoint.every=0", "rollout.engine=vllm", f"rollout.vllm.url={url}"]
    return main(["train", str(world), *fixed, *settings])


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def serve_another_model(server: FakeVllm) -> None:
    server.name = "hpt-0123456789abcdef"
