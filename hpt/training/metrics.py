"""The metrics of one step: every mean stands beside its exact numerator and denominator."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

import torch
import upge

from hpt.method.experience import Experience
from hpt.method.micro_batches import MicroBatch
from hpt.method.rows import Row, Signal
from hpt.optim.engine import Update
from hpt.rollout import Rollout

Metrics = dict[str, float]


@dataclass
class RankStats:
    """What one rank counted over its own micro-batches. Numbers are added up, over ranks too, but for maxima."""

    loss: float = 0.0
    tokens: int = 0
    entropy: float = 0.0
    rl_tokens: int = 0
    clipped: int = 0
    kl: float = 0.0
    kl_tokens: int = 0
    mismatch_kl: float = 0.0
    mismatch_abs: float = 0.0
    mismatch_max: float = field(default=0.0, metadata={"combined_by": max})
    mismatch_tokens: int = 0

    def add_batch(self, batch: MicroBatch, output: upge.PolicyLossOutput, *, first_update: bool) -> None:
        if not batch.rows:
            return
        rl, evaluated = batch.objective_index == Signal.RL, output.evaluated
        self.tokens += batch.targets.numel()
        numbers = {
            "loss": output.loss,
            "entropy": output.entropy.where(evaluated, 0.0).sum(),
            "rl_tokens": rl.sum(),
            "clipped": (rl & ~output.stable).sum(),
        }
        if batch.penalised:
            gap = (batch.ref_logprobs.double() - output.logprobs.double()).where(evaluated, 0.0)
            numbers |= {"kl": (torch.expm1(gap) - gap).sum(), "kl_tokens": evaluated.sum()}
        if first_update:  # later ones no longer have the weights that the engine had
            known = rl & evaluated & batch.old_logprobs.isnan()
            numbers |= _mismatch(output.logprobs, batch.rollout_logprobs, known)
        self._add(numbers)

    def add_mismatch_of_rows(self, rows: Sequence[Row]) -> None:
        """From log-probabilities that were measured before the first update."""
        for row in rows:
            if row.signal == Signal.RL and row.old_logprobs and row.rollout_logprobs:
                old, rollout = torch.tensor(row.old_logprobs), torch.tensor(row.rollout_logprobs)
                self._add(_mismatch(old, rollout, torch.ones_like(old, dtype=torch.bool)))

    def _add(self, numbers: dict[str, torch.Tensor]) -> None:
        """Adds numbers () to the fields of these names; they leave the device all at once."""
        values = torch.stack([number.detach().double() for number in numbers.values()]).tolist()
        known = dict(zip(numbers, values, strict=True))
        for number in fields(self):
            if number.name in known:
                before = getattr(self, number.name)
                total = _combination(number)([before, known[number.name]])
                setattr(self, number.name, type(before)(total))  # counts stay whole numbers


def _mismatch(trainer: torch.Tensor, engine: torch.Tensor, known: torch.Tensor) -> dict[str, torch.Tensor]:
    """Between log-probabilities (N,) of the same tokens under the same weights, where `known` (N,) is true.

    engine: nan where it has none.
    """
    known = known & ~engine.isnan()
    log_ratio = (trainer.double() - engine.double()).where(known, 0.0)
    return {
        "mismatch_kl": (torch.expm1(log_ratio) - log_ratio).sum(),  # k3 estimates KL(engine || trainer)
        "mismatch_abs": log_ratio.abs().sum(),
        "mismatch_max": log_ratio.abs().max(),
        "mismatch_tokens": known.sum(),
    }


def over_ranks(parts: Sequence[RankStats]) -> RankStats:
    """The step's micro-batches as all ranks counted them."""
    combined: dict[str, Any] = {}
    for number in fields(RankStats):
        combined[number.name] = _combination(number)([getattr(part, number.name) for part in parts])
    return RankStats(**combined)


def _combination(number: Field[Any]) -> Callable[[Sequence[float]], float]:
    return number.metadata.get("combined_by", sum)


@dataclass
class StepStats:
    """What the updates of a step did. Each rank counts its own micro-batches; `over_ranks` then combines `counts`."""

    counts: RankStats = field(default_factory=RankStats)
    rows: int = 0
    rows_skipped: int = 0
    demonstrations: Counter[Signal] = field(default_factory=Counter)  # rows that reached the model
    importance: float = 0.0
    importance_truncated: int = 0
    importance_tokens: int = 0
    updates: list[Update] = field(default_factory=list)
    critic_loss: float = 0.0
    critic_updates: list[Update] = field(default_factory=list)

    def add_batch(self, batch: MicroBatch, output: upge.PolicyLossOutput) -> None:
        self.counts.add_batch(batch, output, first_update=not self.updates)

    def add_importance(self, ratio: torch.Tensor, truncated: float) -> None:
        """ratio: (T,) of a row's tokens. truncated: what a ratio above the limit becomes."""
        self.importance += ratio.double().sum().item()
        self.importance_truncated += int((ratio == truncated).sum())
        self.importance_tokens += ratio.numel()

    def add_update(self, rows: Sequence[Row], update: Update) -> None:
        for row in rows:
            if not row.has_signal:
                self.rows_skipped += 1
                continue
            self.rows += 1
            if row.signal != Signal.RL:
                self.demonstrations[row.signal] += 1
        self.updates.append(update)

    def add_critic_update(self, loss: float, update: Update) -> None:
        self.critic_loss += loss
        self.critic_updates.append(update)


def step_metrics(experiences: Sequence[Experience], stats: StepStats, seconds: dict[str, float]) -> Metrics:
    """One line of metrics.jsonl, without its step.

    `entropy/mean` is in nats per token: over rollouts the mean of -log pi of the sampled tokens, an unbiased estimate
    that counts every rollout; in a run without rollouts the exact entropy over the demonstrations' tokens.
    """
    rollouts = [rollout for experience in experiences for rollout in experience.rollouts]
    metrics = _gate_metrics(experiences)
    if rollouts:
        metrics |= _rollout_metrics(experiences, rollouts)
        metrics |= _mean("entropy", -sum(sum(rollout.logprobs) for rollout in rollouts), _token_count(rollouts))
    elif stats.counts.tokens:
        metrics |= _mean("entropy", stats.counts.entropy, stats.counts.tokens)
    metrics |= _training_metrics(stats)
    tokens = _token_count(rollouts) + stats.counts.tokens  # sampled and trained
    metrics["throughput/tokens_per_second"] = tokens / seconds["step"]
    return metrics | {f"time/{phase}": value for phase, value in seconds.items()}


def sampling_metrics(experiences: Sequence[Experience], questions: int) -> Metrics:
    """What dynamic sampling took to fill a batch of `questions`; every other metric counts all that was sampled."""
    return {
        "sampling/rounds": len(experiences) // questions,
        "sampling/mixed": sum(experience.mixed for experience in experiences),
        "sampling/trained": sum(experience.trained for experience in experiences),
    }


def probe_metrics(experiences: Sequence[Experience], k: int, n: int) -> Metrics:
    """What probing saved. `rollout/probe_reward` is over the first k rollouts of every question, so all count alike."""
    probed = [experience for experience in experiences if experience.probe]
    samples = sum(len(experience.rollouts) for experience in experiences)
    first = [rollout.unpenalised_reward for experience in experiences for rollout in experience.rollouts[:k]]
    return {
        "rollout/probed": len(probed),
        "rollout/stopped": sum(len(experience.rollouts) == k for experience in probed),
        "rollout/samples": samples,
        "rollout/samples_saved": n * len(experiences) - samples,
        **_mean_and_std("rollout/probe_reward", first, std=False),
    }


def _gate_metrics(experiences: Sequence[Experience]) -> Metrics:
    """Questions that train on their demonstration only, by its signal."""
    demonstrated = [e.decision for e in experiences if e.decision.alpha == 0]
    to_sft = sum(decision.beta > 0 for decision in demonstrated)
    return {
        "gate/sft_share": to_sft / len(experiences),
        "gate/sft": to_sft,
        "gate/questions": len(experiences),
        "gate/off_policy": sum(decision.off > 0 for decision in demonstrated),
    }


def _rollout_metrics(experiences: Sequence[Experience], rollouts: Sequence[Rollout]) -> Metrics:
    penalties = overlong_penalties(rollouts)
    tokens = _token_count(rollouts)
    return {
        **_mean_and_std("reward", [rollout.unpenalised_reward for rollout in rollouts], std=False),
        **_function_metrics(experiences),
        **(_mean("overlong", sum(penalties), len(penalties)) if penalties else {}),
        **_verdict_metrics(experiences),
        "response/length": tokens / len(rollouts),
        "response/length_sum": tokens,
        "response/count": len(rollouts),
        "response/truncated": sum(rollout.finish_reason == "length" for rollout in rollouts),
    }


def _verdict_metrics(experiences: Sequence[Experience]) -> Metrics:
    """How many questions have no, some and only right rollouts, and the verdicts; nothing where none is asked for."""
    if not any(experience.judged for experience in experiences):
        return {}
    none_right = all_right = 0
    for experience in experiences:
        right = sum(rollout.status == "correct" for rollout in experience.rollouts)
        none_right += right == 0
        all_right += right == len(experience.rollouts)
    statuses = Counter(rollout.status for experience in experiences for rollout in experience.rollouts)
    return {
        "gate/none": none_right,
        "gate/some": len(experiences) - none_right - all_right,
        "gate/all": all_right,
        "verify/correct": statuses["correct"],
        "verify/incorrect": statuses["incorrect"],
        "verify/unparsable": statuses["unparsable"],
        "verify/timeout": statuses["timeout"],
    }


def _function_metrics(experiences: Sequence[Experience]) -> Metrics:
    """Of each of the recipe's rewards over the rollouts, and what functions logged by log_metric."""
    metrics: Metrics = {}
    for name in experiences[0].rewards.values:
        values = [rollout.rewards[name] for experience in experiences for rollout in experience.rollouts]
        metrics |= _mean_and_std(f"reward/{name}", values)
        metrics[f"reward/{name}/failures"] = sum(experience.rewards.failures[name] for experience in experiences)
    logged: dict[str, list[float]] = {}
    for experience in experiences:
        for name, numbers in experience.rewards.metrics.items():
            logged.setdefault(name, []).extend(numbers)
    for name, numbers in logged.items():
        metrics |= _mean(f"logged/{name}", sum(numbers), len(numbers))
    return metrics


def _mean_and_std(name: str, values: Sequence[float | None], *, std: bool = True) -> Metrics:
    """Over the values that are not None, with the unbiased std; no mean where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return {f"{name}/sum": 0.0, f"{name}/count": 0}
    spread = {f"{name}/std": statistics.stdev(known) if len(known) > 1 else 0.0} if std else {}
    return _mean(name, sum(known), len(known)) | spread


def _training_metrics(stats: StepStats) -> Metrics:
    counts, updates = stats.counts, stats.updates
    metrics: Metrics = {
        "train/loss": counts.loss / len(updates),
        "train/grad_norm": sum(update.grad_norm for update in updates) / len(updates),
        "train/lr": updates[-1].lr,
        "train/updates": len(updates),
        "train/skipped": sum(update.skipped for update in updates),
        "train/rows": stats.rows,
        "train/rows_skipped": stats.rows_skipped,
        "train/tokens": counts.tokens,
    }
    if stats.demonstrations:
        metrics["train/rows_sft"] = stats.demonstrations[Signal.SFT]
        metrics["train/rows_off_policy"] = stats.demonstrations[Signal.OFF_POLICY]
    if stats.critic_updates:
        count = len(stats.critic_updates)
        metrics["critic/loss"] = stats.critic_loss / count
        metrics["critic/grad_norm"] = sum(update.grad_norm for update in stats.critic_updates) / count
    if counts.rl_tokens:
        metrics["clip/share"] = counts.clipped / counts.rl_tokens
        metrics["clip/count"] = counts.clipped
        metrics["clip/tokens"] = counts.rl_tokens
    if counts.kl_tokens:
        metrics |= _mean("kl", counts.kl, counts.kl_tokens)
    if counts.mismatch_tokens:
        metrics["rollout/mismatch_kl"] = counts.mismatch_kl / counts.mismatch_tokens
        metrics["rollout/mismatch_kl_sum"] = counts.mismatch_kl
        metrics["rollout/mismatch_abs"] = counts.mismatch_abs / counts.mismatch_tokens
        metrics["rollout/mismatch_abs_sum"] = counts.mismatch_abs
        metrics["rollout/mismatch_max"] = counts.mismatch_max
        metrics["rollout/mismatch_tokens"] = counts.mismatch_tokens
    if stats.importance_tokens:
        metrics |= _mean("tis", stats.importance, stats.importance_tokens)
        metrics["tis/cut"] = stats.importance_truncated
    return metrics


def overlong_penalties(rollouts: Sequence[Rollout]) -> list[float]:
    return [rollout.overlong_penalty for rollout in rollouts if rollout.overlong_penalty is not None]


def _token_count(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.tokens) for rollout in rollouts)


def _mean(name: str, total: float, count: int) -> Metrics:
    return {f"{name}/mean": total / count, f"{name}/sum": total, f"{name}/count": count}
