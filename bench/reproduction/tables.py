"""The tables of the comparison, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from .outcomes import Outcome, by_condition, by_gamma, by_method
from .statistics import Estimate, over_seeds
from .task import CLEAN, METHODS, START, TITLES, WRONG

REFERENCES = ("hpt", "sft-then-grpo", "sft")
"""The methods that all others are compared with, seed by seed."""


def report(outcomes: Sequence[Outcome], untrained: str) -> str:
    """All tables. untrained: the grade that no training question has."""
    parts = []
    for condition, methods in by_condition(outcomes).items():
        parts += [f"## {TITLES[condition].capitalize()}", "", *_accuracies(methods, untrained), ""]
        for reference in REFERENCES:
            if reference in methods:
                parts += [f"### `{reference}` against the others", "", *_differences(methods, reference), ""]
        parts += ["### Questions", "", *_questions(methods), ""]
        parts += ["### Costs", "", *_costs(methods), ""]
        gammas = by_gamma(outcomes, condition)
        if len(gammas) > 1:
            parts += [
                "### HPT's gate: SFT where at most a share gamma of the rollouts is right",
                "",
                *_gammas(gammas),
                "",
            ]
        tuning = [each for each in outcomes if not each.evaluation and each.trial.condition == condition]
        if tuning:
            parts += ["### Learning rates tried, on seeds of their own", "", *_tuning(tuning), ""]
    if changes := _changes(outcomes):
        parts += ["## What wrong demonstrations change", "", *changes, ""]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _label(method: str) -> str:
    return "start model" if method == START else f"`{method}`"


def _ranked(methods: dict[str, list[Outcome]]) -> list[str]:
    """The start model, then the best method first."""
    accuracies = {name: mean(outcome.accuracy() for outcome in outcomes) for name, outcomes in methods.items()}
    return sorted(methods, key=lambda name: (name != START, -accuracies[name]))


def _accuracies(methods: dict[str, list[Outcome]], untrained: str) -> list[str]:
    first = next(iter(methods.values()))[0]
    grades = list(dict.fromkeys(answer.grade for answer in first.evaluation))
    n = first.evaluation[0].n
    ks = [k for k in (8, 64, 256) if k <= n]
    head = ["method", "lr", "seeds", "accuracy", *(f"{grade}*" if grade == untrained else grade for grade in grades)]
    rows = []
    for method in _ranked(methods):
        outcomes = methods[method]
        rows.append(
            [
                _label(method),
                ", ".join(f"{rate:g}" for rate in outcomes[0].trial.rates),
                str(len(outcomes)),
                str(over_seeds([outcome.accuracy() for outcome in outcomes])),
                *(f"{mean(outcome.accuracy(grade) for outcome in outcomes):.2f}" for grade in grades),
                *(f"{mean(outcome.pass_at(k) for outcome in outcomes):.2f}" for k in ks),
            ]
        )
    note = [f"Mean over seeds ± half of the 95% interval over seeds; {n} samples of each held-out question."]
    if untrained in grades:
        note.append(f"*: no training question has this grade ({untrained}).")
    return [*_table([*head, *(f"pass@{k}" for k in ks)], rows), "", " ".join(note)]


def _differences(methods: dict[str, list[Outcome]], reference: str) -> list[str]:
    """A method against every other."""
    rows = []
    for method in _ranked(methods):
        differences = _paired(methods[reference], methods[method])
        if method in (reference, START) or not differences:
            continue
        ahead = sum(difference > 0 for difference in differences)
        rows.append([_label(method), _signed(over_seeds(differences)), f"{ahead} of {len(differences)}"])
    return _table([f"`{reference}` against", "difference in accuracy", "seeds where it is ahead"], rows)


def _paired(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[float]:
    """Differences of accuracy, ours less theirs, on the seeds that both have: these share their questions."""
    others = {outcome.trial.seed: outcome for outcome in theirs}
    return [
        outcome.accuracy() - others[outcome.trial.seed].accuracy() for outcome in ours if outcome.trial.seed in others
    ]


def _signed(change: Estimate) -> str:
    return f"+{change}" if change.mean >= 0 else str(change)


def _changes(outcomes: Sequence[Outcome]) -> list[str]:
    """Of each method that has demonstrations and was run in both conditions."""
    clean, wrong = by_method(outcomes, CLEAN), by_method(outcomes, WRONG)
    rows = []
    for method in _ranked(wrong):
        if method == START or not METHODS[method].demonstrations:
            continue
        changes = _paired(wrong[method], clean.get(method, []))
        if changes:
            lower = sum(change < 0 for change in changes)
            rows.append([_label(method), _signed(over_seeds(changes)), f"{lower} of {len(changes)}"])
    if not rows:
        return []
    return _table(["method", "accuracy, less that with clean demonstrations", "seeds where it is lower"], rows)


def _questions(methods: dict[str, list[Outcome]]) -> list[str]:
    """Questions solved by some and not by others: those of which at least half of the samples are right."""
    starts = {outcome.trial.seed: outcome.solved for outcome in methods.get(START, [])}
    hpt = {outcome.trial.seed: outcome.solved for outcome in methods.get("hpt", [])}
    rows = []
    for method in _ranked(methods):
        outcomes = methods[method]
        solved = mean(len(outcome.solved) for outcome in outcomes)
        cells = [f"{solved:.1f}"]
        for reference, lost in ((starts, True), (starts, False), (hpt, True), (hpt, False)):
            pairs = [
                (outcome.solved, reference[outcome.trial.seed])
                for outcome in outcomes
                if outcome.trial.seed in reference
            ]
            counts = [len(theirs - own) if lost else len(own - theirs) for own, theirs in pairs]
            cells.append(f"{mean(counts):.1f}" if counts else "")
        entropies = [
            line["entropy/mean"] for outcome in outcomes for line in outcome.metrics[-5:] if "entropy/mean" in line
        ]
        cells += [f"{mean(outcome.length for outcome in outcomes):.1f}", f"{mean(entropies):.3f}" if entropies else ""]
        rows.append([_label(method), *cells])
    count = len(next(iter(methods.values()))[0].evaluation)
    head = ["method", f"solved of {count}", "forgotten", "newly solved", "HPT alone", "not HPT", "length", "entropy"]
    return [
        *_table(head, rows),
        "",
        "Solved: at least half of the samples are right. Forgotten and newly solved: against the start model. HPT "
        "alone: solved by HPT and not by the method; not HPT: the reverse. Length: mean tokens of a sample. Entropy: "
        "nats per token that is trained on, over the last five steps. Not comparable between SFT, which trains on "
        "demonstrations, and RL, which trains on the model's own samples.",
    ]


def _costs(methods: dict[str, list[Outcome]]) -> list[str]:
    rows = []
    for method in _ranked(methods):
        if method == START:
            continue
        outcomes = methods[method]
        totals = [
            mean(outcome.updates for outcome in outcomes),
            mean(outcome.demonstrations for outcome in outcomes),
            mean(outcome.total("train/tokens") for outcome in outcomes),
            mean(outcome.total("response/length_sum") for outcome in outcomes),
            mean(outcome.total("time/step") for outcome in outcomes),
        ]
        rows.append([_label(method), *(f"{total:,.0f}" for total in totals)])
    head = ["method", "updates", "demonstrations trained on", "tokens trained", "tokens generated", "seconds"]
    return [
        *_table(head, rows),
        "",
        "Updates: of the steps that had something to train on. A demonstration counts as often as it is trained on. "
        "Seconds: of rollouts, verification and training.",
    ]


def _gammas(gammas: dict[float, list[Outcome]]) -> list[str]:
    rows = []
    for gamma, outcomes in gammas.items():
        sft = sum(outcome.total("gate/sft") for outcome in outcomes)
        questions = sum(outcome.total("gate/questions") for outcome in outcomes)
        accuracy = over_seeds([outcome.accuracy() for outcome in outcomes])
        rows.append([f"{gamma:g}", str(accuracy), f"{sft / questions:.1%}"])
    return _table(["gamma", "accuracy", "questions trained by SFT"], rows)


def _tuning(tuning: Sequence[Outcome]) -> list[str]:
    rates = sorted({outcome.trial.rates[-1] for outcome in tuning})
    rows = []
    for method in dict.fromkeys(outcome.trial.method for outcome in tuning):
        cells = []
        for rate in rates:
            found = [o.accuracy_after() for o in tuning if o.trial.method == method and o.trial.rates[-1] == rate]
            cells.append(f"{mean(found):.3f}" if found else "")
        rows.append([_label(method), *cells])
    seeds = len({outcome.trial.seed for outcome in tuning})
    note = f"Held-out accuracy after the run, mean over seeds ({seeds}); of two stages, by the second's rate."
    return [*_table(["method", *(f"{rate:g}" for rate in rates)], rows), "", note]
