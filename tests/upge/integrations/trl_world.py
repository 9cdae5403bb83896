"""A world small enough for TRL's trainers on a CPU: a random model, characters as tokens, and comparisons."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789+=: "
SPECIAL = ["<pad>", "<eos>", "<user>", "<bot>"]
TEMPLATE = (
    "{% for m in messages %}{{ ('<user>' if m['role'] == 'user' else '<bot>') + m['content'] + '<eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
SILENT = {
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "bf16": False,
    "max_grad_norm": 0.0,
}


def tokenizer() -> PreTrainedTokenizerFast:
    names = [*SPECIAL, *CHARACTERS]
    backend = Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left", chat_template=TEMPLATE
    )


def make_model(folder: Path, **shape: Any) -> Path:
    """A folder with a model whose entropies and ratios are far from trivial."""
    torch.manual_seed(0)
    usual = {
        "vocab_size": len(SPECIAL) + len(CHARACTERS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    Qwen2ForCausalLM(Qwen2Config(**usual | shape)).save_pretrained(folder)
    return folder


def questions(count: int = 8) -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"{row}+{row}=", "demonstration": f"{2 * row} is it", "row": row} for row in range(count)]
    )


class Gradients(TrainerCallback):
    """Keeps the gradient of every update as one vector."""

    def __init__(self) -> None:
        self.vectors: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.vectors.append(gradient(model))


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().clone()


def train(trainer: Any) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """The gradients of all updates, and the logged lines without times."""
    kept = Gradients()
    trainer.add_callback(kept)
    trainer.train()
    untimed = [
        {name: value for name, value in line.items() if not any(word in name for word in ("time", "runtime", "second"))}
        for line in trainer.state.log_history
    ]
    return kept.vectors, untimed


def assert_same_gradient(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 2e-5) -> None:
    assert theirs.norm() > 0
    assert ((ours - theirs).norm() / theirs.norm()).item() < bound


def assert_same_metrics(ours: dict[str, Any], theirs: dict[str, Any], bound: float = 1e-5) -> None:
    """Numbers or lists of numbers, to an absolute or relative bound. Both NaN, or both None, are the same."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        pairs = zip(ours[name], value, strict=True) if isinstance(value, list) else [(ours[name], value)]
        for mine, other in pairs:
            if isinstance(other, float):
                same = math.isnan(mine) if math.isnan(other) else abs(mine - other) <= bound * max(1, abs(other))
                assert same, (name, mine, other)
            else:
                assert mine == other, (name, mine, other)


@contextlib.contextmanager
def options(trainer: Any, **values: Any) -> Iterator[None]:
    """Sets attributes of the trainer, or with the prefix args_ of its configuration, for a while."""
    targets = {name: (trainer.args if name.startswith("args_") else trainer) for name in values}
    names = {name: name.removeprefix("args_") for name in values}
    before = {name: getattr(targets[name], names[name]) for name in values}
    for name, value in values.items():
        setattr(targets[name], names[name], value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(targets[name], names[name], value)


def policy_loss(trainer: Any, inputs: dict[str, Any]) -> tuple[float, torch.Tensor, dict[str, Any]]:
    """Value, gradient and metrics of `_compute_loss`."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, dict(inputs))
    loss.backward()
    metrics = {name: list(values) for name, values in trainer._metrics["train"].items()}
    trainer._metrics["train"].clear()
    return loss.item(), gradient(trainer.model), metrics
