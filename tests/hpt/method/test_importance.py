"""Truncated importance sampling against TRL's formula through full logits, and the measured mismatch.

A token of a rollout has the loss ratio * -min(r A, clip(r) A) + beta KL (TRL 1.16, trainer/grpo_trainer.py), and here
the entropy bonus: the ratio multiplies the policy term alone.
"""

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
from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import ONLY_ROLLOUTS, Decision
from hpt.method.micro_batches import empty_batch, micro_batches
from hpt.method.rows import Row, Signal, token_rows
from hpt.model.policy import Policy, importance_of
from hpt.rollout import Rollout, TransformersEngine
from hpt.training.callbacks import ImportanceSampling
from hpt.training.metrics import StepStats

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


def settings(sections: dict[str, Any] | None = None, **loss: Any) -> Config:
    base = {"output": "o", "steps": 1, "model": {"path": "m"}, "data": {"train": "t"}, "gate": {"kind": "rl"}}
    loss = {"backend": "torch", "tis_clip": LIMIT} | loss
    return build_config(base | {"loss": loss} | (sections or {}), source="test")


def shifts(seed: int) -> list[torch.Tensor]:
    """For each rollout, by how much other log-probabilities of its tokens are off; within 1 on either side mostly."""
    generator = torch.Generator().manual_seed(seed)
    return [0.8 * torch.randn(len(response), generator=generator, dtype=torch.float64) for response in RESPONSES]


ENGINE, OLD, REFERENCE = 3, 4, 5  # seeds of what they are off by


def rows_of(model: Qwen2ForCausalLM, config: Config) -> list[Row]:
    """Four rollouts, with log-probabilities of the engine, the old policy and the reference model, and a demonstration.

    log pi_old is that of the policy where the objective reads no ratio to it.
    """
    policy = Policy(model, config)
    experiences = []
    for index, (prompt, response, advantage) in enumerate(zip(PROMPTS, RESPONSES, ADVANTAGES, strict=True)):
        rollout = Rollout(response, [0.0] * len(response), "stop", advantage=advantage)
        decision = Decision(alpha=1.0, beta=float(index == 0), off=0.0)
        experiences.append(Experience(Question(str(index), "", ""), prompt, [rollout], decision, [1, 2, 3]))
    rows = token_rows(experiences, config)
    others = zip(shifts(ENGINE), shifts(OLD), shifts(REFERENCE), strict=True)
    for row in rows:
        now = policy.logprobs(micro_batches([row], 1000, packed=False)[0])
        row.old_logprobs = now.tolist()
        if row.signal == Signal.RL:
            engine, old, reference = next(others)
            moved = now.double() - old if policy.needs_old_logprobs else now.double()
            row.old_logprobs, row.rollout_logprobs = moved.tolist(), (moved - engine).tolist()
            if config.loss.kl_coef:
                row.ref_logprobs = (now.double() - reference).tolist()
    return rows


def ratios(kind: str, mode: str) -> list[torch.Tensor]:
    """TRL's vllm_importance_sampling_mode {token,sequence}_{truncate,mask} of each rollout."""
    found = []
    for shift in shifts(ENGINE):
        ratio = shift.exp() if kind == "token" else shift.sum().exp().expand(len(shift))
        found.append(ratio.clamp(max=LIMIT) if mode == "clip" else ratio * (ratio <= LIMIT))
    return found


def trl_loss(model: Qwen2ForCausalLM, config: Config, factors: list[torch.Tensor]) -> torch.Tensor:
    """The mean over questions of the means over tokens, with SFT on the demonstration."""
    clipped = config.batch.updates > 1
    total = torch.zeros((), dtype=torch.float64)
    parts = zip(PROMPTS, RESPONSES, ADVANTAGES, factors, shifts(OLD), shifts(REFERENCE), strict=True)
    for prompt, response, advantage, factor, old_shift, reference_shift in parts:
        l, entropy = statistics(model, prompt, response)
        r = (l - l.detach() + (old_shift if clipped else 0)).exp()
        policy = -torch.minimum(r * advantage, r.clamp(0.8, 1.2) * advantage) if clipped else -r * advantage
        d = l.detach() - reference_shift - l
        penalty = config.loss.kl_coef * (d.exp() - d - 1)
        total = total + (factor * policy + penalty - config.loss.entropy_coef * entropy).mean()
    l, entropy = statistics(model, PROMPTS[0], [1, 2, 3])
    total = total + (-l - config.loss.entropy_coef * entropy).mean()
    return total / len(PROMPTS)


def statistics(model: Qwen2ForCausalLM, prompt: list[int], response: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    every = torch.log_softmax(logits, -1)
    return every.gather(-1, torch.tensor(response)[:, None]).squeeze(-1), -(every.exp() * every).sum(-1)


def gradient_of(model: Qwen2ForCausalLM, loss: Any) -> torch.Tensor:
    model.zero_grad()
    loss()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(("kind", "mode"), KINDS)
@pytest.mark.parametrize("objective", ["REINFORCE", "GRPO"])
def test_the_ratio_multiplies_the_policy_term_alone(
    model: Qwen2ForCausalLM, kind: str, mode: str, objective: str
) -> None:
    """With KL penalty and entropy bonus, for any split into micro-batches, packed or padded."""
    updates = 2 if objective == "GRPO" else 1  # from the second on, r is not 1
    sections = {"rl": {"objective": objective}, "batch": {"updates": updates}}
    config = settings(tis=kind, tis_mode=mode, kl_coef=0.3, entropy_coef=0.2, sections=sections)
    policy, rows = Policy(model, config), rows_of(model, config)
    assert policy.importance is not None
    stats = StepStats()
    ImportanceSampling(policy.importance, config.loss.entropy_coef).before_updates([rows], stats)
    factors = ratios(kind, mode)
    assert stats.importance == pytest.approx(sum(float(factor.sum()) for factor in factors), rel=1e-5)
    truncated = LIMIT if mode == "clip" else 0.0
    assert stats.importance_truncated == sum(int((factor == truncated).sum()) for factor in factors)
    assert 0 < stats.importance_truncated < stats.importance_tokens == sum(map(len, RESPONSES))
    assert all(row.has_signal for row in rows)  # of a row that is masked as a whole the other terms are left

    expected = gradient_of(model, lambda: trl_loss(model, config, factors).backward())
    for tokens, packed in ((1000, False), (12, True), (1, False)):
        batches = micro_batches(rows, tokens, packed=packed)
        found = gradient_of(model, lambda batches=batches: [policy.loss(b).loss.backward() for b in batches])
        # Sums of some hundred float32 terms.
        assert (found - expected).norm() < 1e-5 * expected.norm()

    everywhere = [torch.ones_like(factor) for factor in factors]
    without = gradient_of(model, lambda: trl_loss(model, config, everywhere).backward())
    assert (expected - without).norm() > 0.05 * expected.norm()


@pytest.mark.parametrize(("shift", "ratio"), [(-900.0, 0.0), (900.0, 2.0)])
@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_extreme_ratios_neither_overflow_nor_pass_the_limit(
    model: Qwen2ForCausalLM, kind: str, shift: float, ratio: float
) -> None:
    policy = Policy(model, settings(tis=kind, tis_clip=2.0))
    row = Row([2, 3, 4], 1, Signal.RL, 0.5, 1.5, rollout_logprobs=[-1.0, -1.0], old_logprobs=[shift - 1, -1.0])
    stats = StepStats()
    assert policy.importance is not None
    ImportanceSampling(policy.importance, entropy_coef=0.0).before_updates([[row]], stats)
    own = 1.0 if kind == "token" else ratio
    assert stats.importance == ratio + own
    (batch,) = micro_batches([row], 99, packed=True)
    assert policy.loss(batch).coefficient.tolist() == [-0.75 * ratio, -0.75 * own]


def test_a_rank_without_rows_computes_a_loss_of_0(model: Qwen2ForCausalLM) -> None:
    assert Policy(model, settings(tis="sequence", entropy_coef=0.1)).loss(empty_batch()).loss == 0


@pytest.mark.parametrize(
    ("mode", "kl", "entropy", "trained"),
    [("mask", 0, 0, False), ("clip", 0, 0, True), ("mask", 1, 0, True), ("mask", 0, 1, True)],
)
def test_a_masked_sequence_reaches_the_model_for_its_other_terms_only(
    mode: str, kl: int, entropy: int, trained: bool
) -> None:
    config = settings(tis="sequence", tis_mode=mode, kl_coef=float(kl), entropy_coef=float(entropy))
    rollout = Rollout([2, 3], [-9.0, -9.0], "stop", advantage=1.0)
    (row,) = token_rows([Experience(Question("", "", ""), [1], [rollout], ONLY_ROLLOUTS)], config)
    row.old_logprobs = [-1.0, -1.0]
    importance = importance_of(config.loss)
    assert importance is not None
    ImportanceSampling(importance, config.loss.entropy_coef).before_updates([[row]], StepStats())
    assert row.has_signal == trained


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
