"""GRPOTrainer against TRL's own, loss by loss and in whole runs."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from trl_world import (
    SILENT,
    assert_same_gradient,
    assert_same_metrics,
    make_model,
    options,
    policy_loss,
    questions,
    tokenizer,
    train,
)
from upge.integrations.trl import GRPOTrainer

ROWS, PROMPT, COMPLETION = 6, 4, 9


def reward(completions: list[str], **_: Any) -> list[float]:
    return [len(set(text)) / 10 for text in completions]


def config(folder: Path, **settings: Any) -> trl.GRPOConfig:
    usual = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "seed": 1,
    }
    return trl.GRPOConfig(**SILENT, **usual | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trainers(folder: Path) -> tuple[Any, Any]:
    """Ours and TRL's, over copies of one model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    arguments = {"args": config(folder), "train_dataset": questions(), "processing_class": tokenizer()}
    ours = GRPOTrainer(copy.deepcopy(model), reward, **arguments)
    theirs = trl.GRPOTrainer(copy.deepcopy(model), reward, **arguments)
    for trainer in (ours, theirs):
        trainer.current_gradient_accumulation_steps = 2  # as `train` sets it
    return ours, theirs


@pytest.fixture(scope="module")
def inputs(trainers: tuple[Any, Any]) -> dict[str, torch.Tensor]:
    """A micro-batch whose ratios lie on both sides of every clip."""
    torch.manual_seed(3)
    prompts, completions = torch.randint(4, 40, (ROWS, PROMPT)), torch.randint(4, 40, (ROWS, COMPLETION))
    prompt_mask, mask = torch.ones_like(prompts), torch.ones_like(completions)
    prompt_mask[1, :2] = 0
    for row, length in enumerate((9, 4, 7, 1, 9, 6)):
        mask[row, length:] = 0
    theirs = trainers[1]
    with torch.no_grad():
        logprobs, _, _ = theirs._get_per_token_logps_and_entropies(
            theirs.model, torch.cat([prompts, completions], 1), torch.cat([prompt_mask, mask], 1), COMPLETION
        )
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": completions,
        "completion_mask": mask,
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.5, 0.0, 0.9]),
        "num_items_in_batch": torch.tensor(71),
        "old_per_token_logps": logprobs + 0.4 * torch.randn_like(logprobs),
        "ref_per_token_logps": logprobs + 0.5 * torch.randn_like(logprobs),
    }


def assert_same_loss(trainers: tuple[Any, Any], inputs: dict[str, Any], settings: dict[str, Any]) -> None:
    results = []
    for trainer in trainers:
        with options(trainer, **settings):
            results.append(policy_loss(trainer, inputs))
    (value, grad, metrics), (their_value, their_grad, their_metrics) = results
    assert abs(value - their_value) < 1e-5
    assert_same_gradient(grad, their_grad)
    assert_same_metrics(metrics, their_metrics)


LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
SEQUENCE = {"importance_sampling_level": "sequence"}
TRUNCATE = {"use_vllm": True, "vllm_importance_sampling_correction": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "delta": {"args_delta": 1.5},
    "delta inside the clip": {"args_delta": 1.1},
    "delta below 1": {"args_delta": 0.9},
    "wide": {"epsilon_low": 2.0, "epsilon_high": 3.0},
    "asymmetric": {"epsilon_low": 0.1, "epsilon_high": 0.35},
    "kl": {"beta": 0.1, "args_use_bias_correction_kl": False},
    "kl times ratio": {"beta": 0.1, "args_use_bias_correction_kl": True},
    "sequence": SEQUENCE,
    "sequence, kl": {**SEQUENCE, "beta": 0.1, "args_use_bias_correction_kl": False},
    "sequence, kl times ratio": {**SEQUENCE, "beta": 0.1, "args_use_bias_correction_kl": True},
    "entropy bonus": {"entropy_coef": 0.03, "_entropy_bonus_enabled": True},
    "entropy mask": {"top_entropy_quantile": 0.4},
    "off-policy mask": {"off_policy_mask_threshold": 0.01},
    "steps per generation": {"args_steps_per_generation": 4},
    "all": {
        "beta": 0.1,
        "args_use_bias_correction_kl": True,
        "entropy_coef": 0.03,
        "_entropy_bonus_enabled": True,
        "epsilon_high": 0.3,
        "args_delta": 2.0,
    },
}


@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_gradient_and_metrics_are_trls(
    trainers: tuple[Any, Any], inputs: dict[str, Any], settings: dict[str, Any], loss_type: str, on_policy: bool
) -> None:
    if on_policy:
        inputs = {name: value for name, value in inputs.items() if name != "old_per_token_logps"}
    assert_same_loss(trainers, inputs, {"loss_type": loss_type, **settings})


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("ratio_of", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_importance_ratio_of_vllm_multiplies_the_policy_term_alone(
    trainers: tuple[Any, Any], inputs: dict[str, Any], loss_type: str, ratio_of: str, level: str
) -> None:
    """TRL has truncated or masked it beforehand: so it may be 0."""
    if loss_type == "vespo" and ratio_of == "sequence":
        pytest.skip("TRL refuses it")
    torch.manual_seed(0)
    ratio = 2 * torch.rand(ROWS, COMPLETION if ratio_of == "token" else 1)
    ratio[:2] = ratio[:2].where(torch.rand_like(ratio[:2]) < 0.5, 0.0)
    vllm = {"use_vllm": True, "vllm_importance_sampling_correction": True, "importance_sampling_level": level}
    regularised = {
        "beta": 0.1,
        "args_use_bias_correction_kl": False,
        "entropy_coef": 0.02,
        "_entropy_bonus_enabled": True,
    }
    inputs = {**inputs, "importance_sampling_ratio": ratio}
    assert_same_loss(trainers, inputs, {"loss_type": loss_type, **vllm, **regularised})


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_tokens_of_tools_are_not_trained(trainers: tuple[Any, Any], inputs: dict[str, Any], loss_type: str) -> None:
    tool_mask = torch.ones(ROWS, COMPLETION, dtype=torch.long)
    tool_mask[0, 2:5] = tool_mask[2, :3] = 0
    kl = {"beta": 0.1, "args_use_bias_correction_kl": True}
    assert_same_loss(trainers, {**inputs, "tool_mask": tool_mask}, {"loss_type": loss_type, **kl})
    if loss_type == "vespo":
        return
    # Tools may say what no model expects. A log-probability of 0 in its place would make the ratio overflow.
    unlikely = {
        name: inputs[name].masked_fill(tool_mask == 0, -200.0)
        for name in ("old_per_token_logps", "ref_per_token_logps")
    }
    with options(trainers[0], loss_type=loss_type, **kl):
        value, grad, _ = policy_loss(trainers[0], {**inputs, **unlikely, "tool_mask": tool_mask})
    assert torch.isfinite(grad).all()
    assert abs(value) < 100


@pytest.mark.parametrize("labelled_alone", [False, True])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_micro_batch_of_truncated_completions_has_a_gradient_of_zero(
    trainers: tuple[Any, Any],
    inputs: dict[str, Any],
    loss_type: str,
    labelled_alone: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trl.trainer.utils._use_triton", lambda device: labelled_alone)
    for on_policy in (False, True):
        masked = {**inputs, "completion_mask": torch.zeros_like(inputs["completion_mask"])}
        if on_policy:
            del masked["old_per_token_logps"]
        with options(trainers[0], loss_type=loss_type):
            value, grad, _ = policy_loss(trainers[0], masked)
        assert value == 0
        assert (grad == 0).all()


@pytest.mark.parametrize("loss_type", ["grpo", "cispo"])
@pytest.mark.parametrize("settings", [SETTINGS["all"], SETTINGS["sequence"], SETTINGS["off-policy mask"]])
def test_on_a_gpu_trl_gives_the_labelled_tokens_alone(
    trainers: tuple[Any, Any],
    inputs: dict[str, Any],
    settings: dict[str, Any],
    loss_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for labelled_alone in (False, True):
        monkeypatch.setattr("trl.trainer.utils._use_triton", lambda device, value=labelled_alone: value)
        with options(trainers[0], loss_type=loss_type, **settings):
            results.append(policy_loss(trainers[0], inputs))
    (value, grad, metrics), (other_value, other_grad, other_metrics) = results
    assert abs(value - other_value) < 1e-6
    assert_same_gradient(grad, other_grad, 1e-6)
    assert_same_metrics(metrics, other_metrics, 1e-6)


class HeadFlops(TorchDispatchMode):
    """Counts the FLOPs of matrix products with the vocabulary as one of their sizes."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.total = vocabulary, 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.overloadpacket.__name__.rstrip("_") in ("mm", "addmm"):
            left, right = [value.shape for value in args if isinstance(value, torch.Tensor)][-2:]
            if self.vocabulary in (*left, *right):
                self.total += 2 * left[0] * left[1] * right[1]
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("settings", "on_policy"),
    [({}, False), (SETTINGS["all"], False), (SEQUENCE, True)],
    ids=["plain", "all", "sequence"],
)
def test_the_head_costs_one_pass(
    trainers: tuple[Any, Any], inputs: dict[str, Any], settings: dict[str, Any], on_policy: bool
) -> None:
    """6 V D FLOPs a token; 2, for the metrics, where there is neither an advantage nor a KL or entropy term."""
    ours, times = trainers[0], 10
    many = {name: torch.cat([value] * times) for name, value in inputs.items() if value.dim()}
    many["num_items_in_batch"] = inputs["num_items_in_batch"]
    if on_policy:
        del many["old_per_token_logps"]
    vocabulary, width = ours.model.lm_head.weight.shape
    with options(ours, **settings), HeadFlops(vocabulary) as head:
        policy_loss(ours, many)
    tokens, has_gradient = many["completion_mask"].sum(1), (many["advantages"] != 0) | ("beta" in settings)
    one_pass = vocabulary * width * int(6 * tokens[has_gradient].sum() + 2 * tokens[~has_gradient].sum())
    assert 0 < head.total < 1.15 * one_pass  # tokens are padded to the rows of a tile


def test_an_option_that_needs_all_tokens_first_is_named_once(
    trainers: tuple[Any, Any], inputs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ours = trainers[0]
    ours._noticed.clear()
    with options(ours, top_entropy_quantile=0.2), caplog.at_level(logging.WARNING):
        policy_loss(ours, inputs)
        policy_loss(ours, inputs)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("upge")]
    assert len(messages) == 1
    assert "top_entropy_quantile=0.2" in messages[0]
    ours._noticed.clear()


RUNS: dict[str, dict[str, Any]] = {
    "accumulation": {"gradient_accumulation_steps": 2, "loss_type": "dapo"},
    "iterations, kl": {"num_iterations": 2, "beta": 0.05, "loss_type": "grpo", "max_steps": 4},
    "LoRA, kl, checkpointing": {"beta": 0.05, "gradient_checkpointing": True, "steps_per_generation": 2},
    "several steps a generation": {
        "steps_per_generation": 3,
        "loss_type": "cispo",
        "epsilon_high": 5.0,
        "entropy_coef": 0.01,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_gradients_and_logs_of_trls(folder: Path, tmp_path: Path, name: str) -> None:
    settings, results = RUNS[name], []
    for kind in (GRPOTrainer, trl.GRPOTrainer):
        arguments = {"args": config(tmp_path, **settings), "processing_class": tokenizer()}
        if "LoRA" in name:
            arguments["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
        results.append(train(kind(str(folder), reward, train_dataset=questions(), **arguments)))
    (grads, logs), (their_grads, their_logs) = results
    assert len(grads) == len(their_grads) >= 3
    for ours, theirs in zip(grads, their_grads, strict=True):
        if theirs.norm() > 0:
            assert_same_gradient(ours, theirs)
    for ours_line, their_line in zip(logs, their_logs, strict=True):
        assert_same_metrics(ours_line, their_line)
