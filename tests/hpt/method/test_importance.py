"""Truncated importance sampling and the measured mismatch, against their formulas in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from hpt.commands.main import main
from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.config.sections.method import LossConfig
from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import Decision
from hpt.method.importance import importance_weights, set_importance
from hpt.method.micro_batches import micro_batches
from hpt.method.rows import Row, Signal, token_rows
from hpt.model.policy import Policy
from hpt.rollout import Rollout, TransformersEngine

KINDS = [(kind, mode) for kind in ("token", "sequence") for mode in ("clip", "mask")]
LIMIT = 1.5
RESPONSES = [[3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14, 15], [16, 17]]
PROMPTS = [[2, 3], [4, 5, 6], [7], [8, 9]]
ADVANTAGES = [0.5, -1.0, 2.0, -0.25]


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return Qwen2ForCausalLM(shape)


def settings(**loss: Any) -> Config:
    sections = {"gate": {"kind": "rl"}, "loss": {"backend": "torch", "tis_clip": LIMIT} | loss}
    return build_config(
        {"output": "o", "steps": 1, "model": {"path": "m"}, "data": {"train": "t"}} | sections, source="test"
    )


def shifts() -> list[torch.Tensor]:
    """What an engine's log-probabilities are off by: ratios on both sides of the limit, for tokens and sequences."""
    generator = torch.Generator().manual_seed(3)
    return [0.8 * torch.randn(len(response), generator=generator, dtype=torch.float64) for response in RESPONSES]


def weighted_rows(model: Qwen2ForCausalLM, config: Config) -> list[Row]:
    """Four rollouts by an engine that is off by `shifts`, and a demonstration."""
    policy = Policy(model, config)
    experiences = []
    for index, (prompt, response, advantage) in enumerate(zip(PROMPTS, RESPONSES, ADVANTAGES, strict=True)):
        rollout = Rollout(response, [0.0] * len(response), "stop", advantage=advantage)
        decision = Decision(alpha=1.0, beta=float(index == 0), off=0.0)
        experiences.append(Experience(Question(str(index), "", ""), prompt, [rollout], decision, [1, 2, 3]))
    rows, off = token_rows(experiences, config), iter(shifts())
    for row in rows:
        old = policy.logprobs(micro_batches([row], 1000, packed=False)[0]).tolist()
        if row.signal == Signal.RL:
            row.old_logprobs = old
            row.rollout_logprobs = (torch.tensor(old).double() - next(off)).tolist()
        set_importance(row, config.loss)
    return rows


def expected_weights(kind: str, mode: str) -> list[torch.Tensor]:
    found = []
    for shift in shifts():
        ratio = shift.exp() if kind == "token" else shift.sum().exp().expand(len(shift))
        found.append(ratio.clamp(max=LIMIT) if mode == "clip" else ratio * (ratio <= LIMIT))
    return found


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_weights_are_the_formulas(kind: str, mode: str) -> None:
    loss = LossConfig(tis=kind, tis_mode=mode, tis_clip=LIMIT)  # type: ignore[arg-type]
    cut = 0
    for shift, expected in zip(shifts(), expected_weights(kind, mode), strict=True):
        engine = torch.linspace(-3, -0.1, len(shift), dtype=torch.float64)
        found = torch.tensor(importance_weights((engine + shift).tolist(), engine.tolist(), loss), dtype=torch.float64)
        assert torch.allclose(found, expected, rtol=1e-12, atol=0)
        cut += int((expected == (LIMIT if mode == "clip" else 0)).sum())
    assert 0 < cut < sum(map(len, RESPONSES))


@pytest.mark.parametrize(("shift", "weight"), [(-900.0, 0.0), (900.0, 2.0)])
def test_extreme_ratios_neither_overflow_nor_pass_the_limit(shift: float, weight: float) -> None:
    assert importance_weights([shift], [0.0], LossConfig(tis="token")) == [weight]
    assert importance_weights([shift, shift], [0.0, 0.0], LossConfig(tis="sequence")) == [weight] * 2


@pytest.mark.parametrize(("kind", "mode"), KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_gradient_is_the_weighted_policy_gradient(
    model: Qwen2ForCausalLM, kind: str, mode: str, packed: bool
) -> None:
    """d/dtheta of -sum w A log pi, w the truncated ratio, through full logits; for any split into micro-batches."""
    config = settings(tis=kind, tis_mode=mode)
    rows = weighted_rows(model, config)
    assert [row.signal for row in rows].count(Signal.SFT) == 1
    policy = Policy(model, config)
    gradients = []
    for tokens in (1000, 12, 1):
        model.zero_grad()
        batches = micro_batches([row for row in rows if row.has_signal], tokens, packed=packed)
        for batch in batches:
            policy.loss(batch).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len(batches) == sum(row.has_signal for row in rows)

    model.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for prompt, response, advantage, weights in zip(
        PROMPTS, RESPONSES, ADVANTAGES, expected_weights(kind, mode), strict=True
    ):
        l = logprobs(model, prompt, response)
        loss = loss - (weights * advantage * l).sum() / len(response) / len(PROMPTS)
    loss = loss - logprobs(model, PROMPTS[0], [1, 2, 3]).mean() / len(PROMPTS)
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    for gradient in gradients:
        # Sums of some hundred float32 terms; the next test shows how far the uncorrected gradient is.
        assert (gradient - expected).norm() < 1e-5 * expected.norm()
    uncorrected = sum(abs(float(factor) - 1) for weights in expected_weights(kind, mode) for factor in weights)
    assert uncorrected > 1


def logprobs(model: Qwen2ForCausalLM, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(response)[:, None]).squeeze(-1)


def test_a_masked_sequence_never_reaches_the_model() -> None:
    row = Row([1, 2, 3], 1, Signal.RL, 1.0, 1.0, rollout_logprobs=[-9.0, -9.0], old_logprobs=[-1.0, -1.0])
    set_importance(row, LossConfig(tis="sequence", tis_mode="mask"))
    assert not row.has_signal
    set_importance(row, LossConfig(tis="sequence", tis_mode="clip"))
    assert row.importance == [2.0, 2.0]
    demonstration = Row([1, 2], 1, Signal.SFT, 1.0)
    set_importance(demonstration, LossConfig(tis="token"))
    assert demonstration.importance is None


def off_by(shift: float) -> Any:
    """The transformers engine, whose every other token it reports `shift` too likely."""

    def sample(self: TransformersEngine, prompts: Any, sampling: Any) -> list[Rollout]:
        rollouts = original(self, prompts, sampling)
        return [
            Rollout(one.tokens, [l + shift * (i % 2) for i, l in enumerate(one.logprobs)], one.finish_reason)
            for one in rollouts
        ]

    original = TransformersEngine._sample
    return sample


@pytest.mark.parametrize("tis", ["none", "token", "sequence"])
def test_a_run_measures_the_mismatch_and_what_is_cut(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tis: str
) -> None:
    run, shift = tmp_path / "run", -1.0
    monkeypatch.setattr(TransformersEngine, "_sample", off_by(shift))
    options = [f"output={run}", "steps=2", "method=grpo", "eval.every=0", "batch.updates=1"]
    assert main(["train", str(world), *options, f"loss.tis={tis}", "loss.tis_clip=2.0"]) == 0
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        tokens = line["rollout/mismatch_tokens"]
        wrong = line["rollout/mismatch_abs_sum"] / -shift
        assert wrong == pytest.approx(round(wrong), abs=1e-3)  # a whole number of tokens is off by `shift`
        assert 0 < round(wrong) <= tokens / 2
        assert line["rollout/mismatch_abs"] == line["rollout/mismatch_abs_sum"] / tokens
        assert line["rollout/mismatch_max"] == pytest.approx(-shift, abs=1e-4)
        k3 = math.expm1(-shift) + shift
        assert line["rollout/mismatch_kl_sum"] == pytest.approx(round(wrong) * k3, rel=1e-3)
        assert ("tis/mean" in line) == (tis != "none")
        if tis == "token":  # e > 2 is cut to 2, the others keep a ratio of 1
            assert line["tis/count"] == tokens
            assert line["tis/cut"] == round(wrong)
            assert line["tis/sum"] == pytest.approx(tokens + round(wrong), rel=1e-4)
        if tis == "sequence":
            assert line["tis/cut"] > round(wrong)
