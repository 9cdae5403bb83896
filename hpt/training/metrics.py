"""The numbers of one step: every mean stands beside its exact numerator and denominator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
import upge

from hpt.config.schema import LossConfig
from hpt.method.rows import OFF_POLICY, RL, SFT, MicroBatch, Row
from hpt.optim.local import Update

if TYPE_CHECKING:
    from hpt.training.trainer import Experience


@dataclass
class Trained:
    """Sums over the micro-batches and updates of one step."""

    loss: float = 0.0
    tokens: int = 0
    rows: int = 0
    rows_skipped: int = 0
    entropy: float = 0.0
    rl_tokens: int = 0
    clipped: int = 0
    kl: float = 0.0
    kl_tokens: int = 0
    mismatch_kl: float = 0.0
    mismatch_abs: float = 0.0
    mismatch_max: float = 0.0
    mismatch_tokens: int = 0
    importance: float = 0.0
    importance_cut: int = 0
    importance_tokens: int = 0
    updates: list[Update] = field(default_factory=list)
    demonstrations: Counter[int] = field(default_factory=Counter)  # rows that reached the model, by signal
    critic_loss: float = 0.0
    critic_updates: list[Update] = field(default_factory=list)

    def add_batch(self, batch: MicroBatch, output: upge.PolicyLossOutput) -> None:
        if not batch.rows:
            return
        rl = batch.objective_index == RL
        self.loss += output.loss.item()
        self.tokens += batch.targets.numel()
        self.entropy += output.entropy[output.evaluated].sum().item()
        self.rl_tokens += int(rl.sum())
        self.clipped += int((rl & ~output.stable).sum())
        if batch.penalised:
            gap = (batch.ref_logprobs - output.logprobs)[output.evaluated].double()
            self.kl += (torch.expm1(gap) - gap).sum().item()
            self.kl_tokens += gap.numel()
        if not self.updates:  # later updates differ from what the engine saw by training itself
            known = rl & output.evaluated & batch.old_logprobs.isnan()
            self._add_mismatch(output.logprobs[known], batch.rollout_logprobs[known])

    def add_old_logprobs(self, rows: Sequence[Row]) -> None:
        """Takes the mismatch from log-probabilities that were measured before the first update."""
        for row in rows:
            if row.signal == RL and row.old_logprobs and row.rollout_logprobs:
                self._add_mismatch(torch.tensor(row.old_logprobs), torch.tensor(row.rollout_logprobs))

    def add_importance(self, rows: Sequence[Row], settings: LossConfig) -> None:
        cut = settings.tis_clip if settings.tis_mode == "clip" else 0.0
        for row in rows:
            self.importance += sum(row.importance or [])
            self.importance_cut += sum(factor == cut for factor in row.importance or [])
            self.importance_tokens += len(row.importance or [])

    def _add_mismatch(self, trainer: torch.Tensor, engine: torch.Tensor) -> None:
        """Between log-probabilities (N,) of the same tokens under the same weights."""
        log_ratio = (trainer.double() - engine.double())[~engine.isnan()]
        if log_ratio.numel():
            self.mismatch_kl += (
                (torch.expm1(log_ratio) - log_ratio).sum().item()
            )  # k3 estimate of KL(engine || trainer)
            self.mismatch_abs += log_ratio.abs().sum().item()
            self.mismatch_max = max(self.mismatch_max, log_ratio.abs().max().item())
            self.mismatch_tokens += log_ratio.numel()

    def add_update(self, rows: Sequence[Row], update: Update) -> None:
        reached = sum(row.has_signal for row in rows)
        self.rows += reached
        self.rows_skipped += len(rows) - reached
        self.demonstrations.update(row.signal for row in rows if row.has_signal and row.signal != RL)
        self.updates.append(update)

    def add_critic_update(self, loss: float, update: Update) -> None:
        self.critic_loss += loss
        self.critic_updates.append(update)


def over_ranks(parts: Sequence[Trained]) -> Trained:
    """One step as all ranks saw it: each counted its own micro-batches, and every rank all rows and updates."""
    own = (
        "loss",
        "tokens",
        "entropy",
        "rl_tokens",
        "clipped",
        "kl",
        "kl_tokens",
        "mismatch_kl",
        "mismatch_abs",
        "mismatch_tokens",
    )
    sums = {name: sum(getattr(part, name) for part in parts) for name in own}
    return replace(parts[0], mismatch_max=max(part.mismatch_max for part in parts), **sums)


def step_metrics(experiences: Sequence[Experience], trained: Trained, seconds: dict[str, float]) -> dict[str, float]:
    """One line of metrics.jsonl, without its step.

    `entropy/mean` is in nats a token: over rollouts the mean of -log pi of the sampled tokens, an unbiased estimate
    that counts every rollout; in a run without rollouts the exact entropy over the demonstrations' tokens.
    """
    metrics: dict[str, float] = {}
    groups = [experience.group for experience in experiences]
    rollouts = [rollout for experience in experiences for rollout in experience.rollouts]
    to_sft = sum(group.beta > 0 and group.alpha == 0 for group in groups)
    to_off_policy = sum(group.off > 0 and group.alpha == 0 for group in groups)
    metrics |= {"gate/sft_share": to_sft / len(groups), "gate/sft": to_sft, "gate/questions": len(groups)}
    metrics |= {"gate/off_policy": to_off_policy}
    if rollouts:
        metrics |= _rollout_metrics(experiences)
        metrics |= _mean("entropy", -sum(sum(rollout.logprobs) for rollout in rollouts), _token_count(experiences))
    elif trained.tokens:
        metrics |= _mean("entropy", trained.entropy, trained.tokens)
    metrics |= {
        "train/loss": trained.loss / len(trained.updates),
        "train/grad_norm": sum(update.grad_norm for update in trained.updates) / len(trained.updates),
        "train/lr": trained.updates[-1].lr,
        "train/updates": len(trained.updates),
        "train/skipped": sum(update.skipped for update in trained.updates),
        "train/rows": trained.rows,
        "train/rows_skipped": trained.rows_skipped,
        "train/tokens": trained.tokens,
    }
    if trained.demonstrations:
        metrics |= {
            "train/rows_sft": trained.demonstrations[SFT],
            "train/rows_off_policy": trained.demonstrations[OFF_POLICY],
        }
    if trained.critic_updates:
        metrics |= {
            "critic/loss": trained.critic_loss / len(trained.critic_updates),
            "critic/grad_norm": sum(update.grad_norm for update in trained.critic_updates)
            / len(trained.critic_updates),
        }
    if trained.rl_tokens:
        metrics |= {
            "clip/share": trained.clipped / trained.rl_tokens,
            "clip/count": trained.clipped,
            "clip/tokens": trained.rl_tokens,
        }
    if trained.kl_tokens:
        metrics |= _mean("kl", trained.kl, trained.kl_tokens)
    if trained.mismatch_tokens:
        metrics |= {
            "rollout/mismatch_kl": trained.mismatch_kl / trained.mismatch_tokens,
            "rollout/mismatch_kl_sum": trained.mismatch_kl,
            "rollout/mismatch_abs": trained.mismatch_abs / trained.mismatch_tokens,
            "rollout/mismatch_abs_sum": trained.mismatch_abs,
            "rollout/mismatch_max": trained.mismatch_max,
            "rollout/mismatch_tokens": trained.mismatch_tokens,
        }
    if trained.importance_tokens:
        metrics |= _mean("tis", trained.importance, trained.importance_tokens)
        metrics |= {"tis/cut": trained.importance_cut}
    return metrics | {f"time/{phase}": value for phase, value in seconds.items()}


def sampling_metrics(experiences: Sequence[Experience], questions: int) -> dict[str, float]:
    """What dynamic sampling took to fill a batch of `questions`; every other metric counts all that was sampled."""
    return {
        "sampling/rounds": len(experiences) // questions,
        "sampling/mixed": sum(experience.mixed for experience in experiences),
        "sampling/trained": sum(experience.trained for experience in experiences),
    }


def _rollout_metrics(experiences: Sequence[Experience]) -> dict[str, float]:
    verdicts = [verdict for experience in experiences for verdict in experience.verdicts]
    rollouts = [rollout for experience in experiences for rollout in experience.rollouts]
    right = [sum(verdict.status == "correct" for verdict in experience.verdicts) for experience in experiences]
    everyone = [len(experience.verdicts) for experience in experiences]
    none = sum(count == 0 for count in right)
    solved = sum(count == n for count, n in zip(right, everyone, strict=True))
    statuses = Counter(verdict.status for verdict in verdicts)
    penalties = [penalty for experience in experiences for penalty in experience.penalties]
    lengths = _token_count(experiences)
    return {
        **_mean("reward", sum(verdict.score for verdict in verdicts), len(verdicts)),
        **(_mean("overlong", sum(penalties), len(penalties)) if penalties else {}),
        "gate/none": none,
        "gate/some": len(right) - none - solved,
        "gate/all": solved,
        "response/length": lengths / len(rollouts),
        "response/length_sum": lengths,
        "response/count": len(rollouts),
        "response/truncated": sum(rollout.finish_reason == "length" for rollout in rollouts),
        **{f"verify/{status}": statuses[status] for status in ("correct", "incorrect", "unparsable", "timeout")},
    }


def rollout_records(step: int, experiences: Sequence[Experience]) -> list[dict[str, object]]:
    """One object a question for rollouts/step-*.jsonl, with the gate's decision."""
    return [
        {
            "step": step,
            "id": experience.question.id,
            "grade": experience.question.grade,
            "prompt": experience.question.prompt,
            "answer": experience.question.answer,
            "responses": experience.responses,
            "scores": [verdict.score for verdict in experience.verdicts],
            **({"overlong": list(experience.penalties)} if experience.penalties else {}),
            "statuses": [verdict.status for verdict in experience.verdicts],
            "finish_reasons": [rollout.finish_reason for rollout in experience.rollouts],
            "lengths": [len(rollout.tokens) for rollout in experience.rollouts],
            "P": experience.score if experience.rollouts else None,
            "alpha": experience.group.alpha,
            "beta": experience.group.beta,
            "off": experience.group.off,
            "trained": experience.trained,
        }
        for experience in experiences
    ]


def _token_count(experiences: Sequence[Experience]) -> int:
    return sum(len(rollout.tokens) for experience in experiences for rollout in experience.rollouts)


def _mean(name: str, total: float, count: int) -> dict[str, float]:
    return {f"{name}/mean": total / count, f"{name}/sum": total, f"{name}/count": count}
