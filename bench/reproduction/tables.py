"""The tables of the comparison, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from hpt.evaluation.statistics import permutation_test

from .outcomes import CLEAN, START, WRONG, Outcome, by_gamma, by_method


def report(outcomes: Sequence[Outcome]) -> str:
    """All tables."""
    parts = []
    for demonstrations, title in ((CLEAN, "Clean demonstrations"), (WRONG, "40% of the demonstrations wrong")):
        methods = by_method(outcomes, demonstrations)
        if len(methods) > 1:
            parts += [f"## {title}", "", _ranking(methods), "", *_methods_table(methods), ""]
            parts += [*_differences_table(methods), ""]
    gammas = by_gamma(outcomes)
    if len(gammas) > 1:
        parts += ["## The gate of HPT: SFT where at most this share of the rollouts is right", ""]
        parts += [*_gammas_table(gammas), ""]
    tuning = [outcome for outcome in outcomes if not outcome.evaluation]
    if tuning:
        parts += ["## Learning rates tried, on a seed of their own", "", *_tuning_table(tuning), ""]
    return "\n".join(parts)


def _ranking(methods: dict[str, list[Outcome]]) -> str:
    accuracies = {name: mean(outcome.accuracy() for outcome in outcomes) for name, outcomes in methods.items()}
    ranking = sorted(accuracies, key=lambda name: -accuracies[name])
    labels = {name: "the start model" if name == START else f"`{name}`" for name in ranking}
    return f"By mean accuracy: {', '.join(f'{labels[name]} {accuracies[name]:.3f}' for name in ranking)}."


def _methods_table(methods: dict[str, list[Outcome]]) -> list[str]:
    first = next(iter(methods.values()))[0]
    grades = list(dict.fromkeys(answer.grade for answer in first.evaluation))
    n = first.evaluation[0].n
    head = ["method", "lr", "accuracy", *grades, f"pass@{n}", "rollouts + training, s"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method, outcomes in methods.items():
        row = [
            "start model" if method == START else f"`{method}`",
            ", ".join(f"{rate:g}" for rate in outcomes[0].trial.rates),
            _spread([outcome.accuracy() for outcome in outcomes]),
            *(f"{mean(outcome.accuracy(grade) for outcome in outcomes):.2f}" for grade in grades),
            f"{mean(outcome.pass_at(n) for outcome in outcomes):.2f}",
            "" if method == START else f"{mean(outcome.seconds for outcome in outcomes):.0f}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _differences_table(methods: dict[str, list[Outcome]]) -> list[str]:
    """HPT against every other method. Seeds and questions are the same, so the differences are paired."""
    hpt = {outcome.trial.seed: outcome for outcome in methods.get("hpt", [])}
    lines = ["| HPT against | difference in accuracy | seeds where HPT is ahead | p |", "|---|---|---|---|"]
    for method, outcomes in methods.items():
        pairs = [(hpt[outcome.trial.seed], outcome) for outcome in outcomes if outcome.trial.seed in hpt]
        if method in ("hpt", START) or not pairs:
            continue
        changes = [ours.accuracy() - theirs.accuracy() for ours, theirs in pairs]
        questions = [
            mine.correct - other.correct
            for ours, theirs in pairs
            for mine, other in zip(ours.evaluation, theirs.evaluation, strict=True)
        ]
        ahead = sum(change > 0 for change in changes)
        lines.append(
            f"| `{method}` | {mean(changes):+.3f} | {ahead} of {len(changes)} | {permutation_test(questions):.2g} |"
        )
    return [
        *lines,
        "",
        "p: exact paired permutation test over the held-out questions of all seeds. It covers the chance in the choice "
        "of questions, not the chance in training.",
    ]


def _gammas_table(gammas: dict[float, list[Outcome]]) -> list[str]:
    lines = ["| gamma | accuracy | questions sent to SFT | rollouts + training, s |", "|---|---|---|---|"]
    for gamma, outcomes in gammas.items():
        steps = [line for outcome in outcomes for line in outcome.metrics if "gate/sft" in line]
        share = sum(line["gate/sft"] for line in steps) / sum(line["gate/questions"] for line in steps)
        accuracy = _spread([outcome.accuracy() for outcome in outcomes])
        lines.append(f"| {gamma:g} | {accuracy} | {share:.0%} | {mean(outcome.seconds for outcome in outcomes):.0f} |")
    return lines


def _tuning_table(tuning: Sequence[Outcome]) -> list[str]:
    rates = sorted({outcome.trial.rates for outcome in tuning})
    lines = [f"| method | {' | '.join(f'{rate:g}' for (rate,) in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for method in dict.fromkeys(outcome.trial.method for outcome in tuning):
        last = {o.trial.rates: o.metrics[-1]["eval/accuracy"] for o in tuning if o.trial.method == method}
        lines.append(f"| `{method}` | {' | '.join(f'{last[rate]:.3f}' for rate in rates)} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    """The mean over seeds (lowest to highest)."""
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
