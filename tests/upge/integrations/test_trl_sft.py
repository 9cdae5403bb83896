"""SFTTrainer against TRL's own, in whole runs and model by model."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
)
from trl_world import (
    CHARACTERS,
    SILENT,
    SPECIAL,
    assert_same_gradient,
    assert_same_metrics,
    gradient,
    make_model,
    tokenizer,
    train,
)
from upge.integrations.trl import SFTTrainer

SHAPE = {
    "vocab_size": len(SPECIAL) + len(CHARACTERS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def examples(count: int = 16) -> Dataset:
    rows = [{"prompt": f"{row}+{row}=", "completion": f"{2 * row} is it" + " ok" * (row % 3)} for row in range(count)]
    return Dataset.from_list(rows)


def config(folder: Path, **settings: Any) -> trl.SFTConfig:
    usual = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "max_length": 32,
    }
    return trl.SFTConfig(**SILENT, **usual | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), tie_word_embeddings=True)


def both(model: Any, output: Path, more: dict[str, Any] | None = None, **settings: Any) -> list[Any]:
    """Ours and TRL's."""
    arguments = {"train_dataset": examples(), "processing_class": tokenizer(), **(more or {})}
    return [
        kind(copy.deepcopy(model), args=config(output, **settings), **copy.deepcopy(arguments))
        for kind in (SFTTrainer, trl.SFTTrainer)
    ]


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nll": ({}, {"loss_type": "nll"}),
    "dft": ({}, {"loss_type": "dft"}),
    "evaluation": ({"eval_dataset": examples(6)}, {"eval_strategy": "steps", "eval_steps": 1}),
    "label smoothing": ({}, {"label_smoothing_factor": 0.1}),
    "LoRA, checkpointing": (
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "down_proj"])},
        {"gradient_checkpointing": True},
    ),
    "all tokens": ({}, {"completion_only_loss": False, "average_tokens_across_devices": False}),
}


@pytest.mark.parametrize(("more", "settings"), RUNS.values(), ids=RUNS.keys())
def test_a_run_has_the_gradients_and_logs_of_trls(
    folder: Path, tmp_path: Path, more: dict[str, Any], settings: dict[str, Any]
) -> None:
    (grads, logs), (their_grads, their_logs) = [
        train(trainer) for trainer in both(str(folder), tmp_path, more, **settings)
    ]
    assert len(grads) == len(their_grads) == 3
    for ours, theirs in zip(grads, their_grads, strict=True):
        assert_same_gradient(ours, theirs)
    for ours_line, their_line in zip(logs, their_logs, strict=True):
        assert_same_metrics(ours_line, their_line)
    assert logs[0]["entropy"] > 0
    assert any(line.get("mean_token_accuracy") for line in logs)


MODELS: dict[str, PreTrainedConfig] = {
    "llama, head with bias": LlamaConfig(**SHAPE),
    "gemma2, soft-cap": Gemma2Config(**SHAPE, final_logit_softcapping=3.0, query_pre_attn_scalar=8, sliding_window=16),
    "granite, divided logits": GraniteConfig(**SHAPE, logits_scaling=2.5),
    "cohere, scaled logits": CohereConfig(**SHAPE, logit_scale=0.25),
    "mixtral, load-balancing loss": MixtralConfig(
        **SHAPE, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.05
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_heads_of_all_kinds(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name])
    if "bias" in name:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(SHAPE["vocab_size"]))
    results = []
    for trainer in both(model, tmp_path):
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 2
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(25))
        loss.backward()
        results.append((loss.item(), gradient(trainer.model), dict(trainer._metrics["train"])))
    (value, grad, metrics), (their_value, their_grad, their_metrics) = results
    assert abs(value - their_value) < 1e-5
    assert_same_gradient(grad, their_grad)
    assert_same_metrics(metrics, their_metrics)


def test_a_loss_that_reads_the_logits_is_named_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def of_logits(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return outputs.logits.float().logsumexp(-1).mean()

    with caplog.at_level(logging.WARNING):
        trainers = both(str(folder), tmp_path, {"compute_loss_func": of_logits}, max_steps=2)
        (grads, logs), (their_grads, their_logs) = [train(trainer) for trainer in trainers]
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("upge")]
    assert len(messages) == 1
    assert "compute_loss_func" in messages[0]
    assert_same_gradient(grads[1], their_grads[1])
    assert_same_metrics(logs[1], their_logs[1])
