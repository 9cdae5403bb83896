"""The KL penalty: against the start model, on rollouts alone, without a second copy where there are adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.method.micro_batches import micro_batches
from hpt.method.rows import Row, Signal
from hpt.model.loading import load_model, load_policy
from hpt.model.policy import Policy
from hpt.model.reference import Reference
from hpt.records.checkpoints import checkpoints
from hpt.support.errors import ConfigError

CPU = torch.device("cpu")
LORA = "model.lora={rank: 4, alpha: 8}"
KINDS = pytest.mark.parametrize("changes", [[], [LORA]], ids=["all weights", "adapters"])


def rows() -> list[Row]:
    generator = torch.Generator().manual_seed(3)
    shapes = (
        (9, 4, Signal.RL, 0.0),
        (6, 2, Signal.RL, 1.0),
        (8, 3, Signal.SFT, 1.0),
        (7, 4, Signal.OFF_POLICY, 1.0),
    )
    return [
        Row(torch.randint(2, 20, (n,), generator=generator).tolist(), prompt, signal, 0.05, advantage, regularised=True)
        for n, prompt, signal, advantage in shapes
    ]


def with_reference(config: Config, policy: Policy) -> list[Row]:
    """The rows as the trainer makes them."""
    found = []
    with Reference(policy, config).on_device() as logprobs:
        for row in rows():
            (batch,) = micro_batches([row], 99, packed=True)
            found.append(replace(row, ref_logprobs=logprobs(batch).tolist()) if row.signal == Signal.RL else row)
    return found


def trained_a_little(world: Path, changes: list[str]) -> tuple[Config, Policy]:
    config = load_config(world, ["loss.kl_coef=0.7", "rollout.temperature=0.8", *changes])
    policy = Policy(load_policy(config, None, CPU), config)
    generator = torch.Generator().manual_seed(4)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return config, policy


def plain_logprobs(model: Any, row: Row, temperature: float) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0].double() / temperature
    targets = torch.tensor(row.tokens[1:])[:, None]
    return torch.log_softmax(logits[:-1], dim=-1).gather(-1, targets).squeeze(-1)[row.prompt_length - 1 :]


@KINDS
def test_the_penalty_is_k3_against_the_start_model(world: Path, changes: list[str]) -> None:
    """And rollouts are scored at the temperature they were sampled at, demonstrations at 1."""
    config, policy = trained_a_little(world, changes)
    given = with_reference(config, policy)
    total = sum(policy.loss(batch).loss for batch in micro_batches(given, 99, packed=False))
    assert isinstance(total, torch.Tensor)
    total.backward()
    got = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()

    start = load_model(config.model.path, config.model, CPU)
    expected = torch.zeros((), dtype=torch.float64)
    for row in rows():
        temperature = 0.8 if row.signal == Signal.RL else 1.0
        ours = plain_logprobs(policy.model, row, temperature)
        (batch,) = micro_batches([row], 99, packed=True)
        torch.testing.assert_close(policy.logprobs(batch).double(), ours.detach(), rtol=0, atol=1e-5)
        if row.signal == Signal.OFF_POLICY:  # LUFFY's
            expected = expected - row.weight * (ours.exp() / (ours.exp() + 0.1)).sum()
            continue
        expected = expected - row.weight * float(row.advantage) * ours.sum()  # type: ignore[arg-type]
        if row.signal == Signal.RL:
            gap = plain_logprobs(start, row, temperature).detach() - ours
            assert gap.abs().max() > 0.01
            expected = expected + row.weight * 0.7 * (gap.exp() - gap - 1).sum()
    expected.backward()  # type: ignore[no-untyped-call]
    # REINFORCE's surrogate is -A log pi, as SFT's, so that the losses can be compared, too.
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in policy.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_frozen_copy_leaves_the_device_between_uses(world: Path) -> None:
    config, policy = trained_a_little(world, [])
    reference = Reference(policy, config)
    assert reference.frozen is not None
    tensors = list(reference.frozen.model.parameters())
    assert not any(tensor.requires_grad for tensor in tensors)
    before = [(tensor.data_ptr(), tensor.clone()) for tensor in tensors]
    reference.device = torch.float64  # type: ignore[assignment]  # stands for a GPU: a copy in another place
    with reference.on_device():
        assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert [tensor.data_ptr() for tensor in tensors] == [place for place, _ in before]
    assert all(torch.equal(tensor, value) for tensor, (_, value) in zip(tensors, before, strict=True))


def test_adapters_need_no_copy_and_come_back(world: Path) -> None:
    config, policy = trained_a_little(world, [LORA])
    reference = Reference(policy, config)
    assert reference.frozen is None
    (batch,) = micro_batches(rows()[:1], 99, packed=True)
    before = policy.logprobs(batch)
    with reference.on_device() as logprobs:
        assert (logprobs(batch) - before).abs().max() > 0.01
    assert torch.equal(policy.logprobs(batch), before)
    assert all(parameter.requires_grad for name, parameter in policy.model.named_parameters() if "lora_" in name)


@KINDS
def test_runs(world: Path, tmp_path: Path, metrics_of: Callable[[Path], Any], changes: list[str]) -> None:
    """Metrics, resuming bit for bit, and what the penalty is for."""
    asked = ["steps=4", "eval.every=0", "method=grpo", "optimizer.lr=1e-2", *changes]
    lines = {}
    for coefficient in ("1e-9", "30.0"):
        run = tmp_path / coefficient
        assert main(["train", str(world), f"output={run}", f"loss.kl_coef={coefficient}", *asked]) == 0
        lines[coefficient] = metrics_of(run)
        for line in lines[coefficient]:
            assert line["train/rows_skipped"] == 0  # rollouts without an advantage have the penalty
            assert line["kl/count"] == line["response/length_sum"]
            assert line["kl/mean"] == line["kl/sum"] / line["kl/count"]
        assert lines[coefficient][0]["kl/mean"] == pytest.approx(0, abs=1e-9)
        assert lines[coefficient][-1]["kl/mean"] > 1e-5
    assert lines["30.0"][-1]["kl/mean"] < 0.5 * lines["1e-9"][-1]["kl/mean"]

    again = tmp_path / "again"
    shutil.copytree(tmp_path / "30.0", again)
    shutil.rmtree(checkpoints(again)[-1])
    assert main(["train", "--resume", str(again)]) == 0
    assert metrics_of(again) == lines["30.0"]
    name = "adapter_model.safetensors" if changes else "model.safetensors"
    one, other = (load_file(checkpoints(run)[-1] / name) for run in (again, tmp_path / "30.0"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_without_a_coefficient_there_is_no_reference(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", str(world), f"output={run}", "steps=1", "eval.every=0"]) == 0
    assert "kl/mean" not in json.loads((run / "metrics.jsonl").read_text())


def test_combination(world: Path) -> None:
    with pytest.raises(ConfigError, match="kl_coef"):
        load_config(world, ["loss.kl_coef=0.1", "loss.aggregation=official"])
