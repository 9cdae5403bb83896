"""The figure of the comparison: accuracy, pass@k, the gate's gamma, and the cost of each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from hpt.report.style import MUTED, method_colours, styled, to_png
from hpt.support.files import write_file_atomically

from .outcomes import CLEAN, START, WRONG, Outcome, by_gamma, by_method

_TITLES = {CLEAN: "clean demonstrations", WRONG: "40% wrong demonstrations"}


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    with styled():
        figure = Figure(figsize=(12, 9.5), layout="constrained")
        axes = figure.subplots(3, 2)
        for column, demonstrations in enumerate((CLEAN, WRONG)):
            methods = by_method(outcomes, demonstrations)
            _accuracies(axes[0, column], methods, f"Held-out accuracy, {_TITLES[demonstrations]}")
            _pass_curves(axes[1, column], methods, f"pass@k, {_TITLES[demonstrations]}")
        _gammas(axes[2, 0], by_gamma(outcomes))
        _costs(axes[2, 1], by_method(outcomes, CLEAN))
        write_file_atomically(path, to_png(figure, dpi=120))


def _colours(methods: Sequence[str]) -> dict[str, str]:
    return method_colours([method for method in methods if method != START]) | {START: MUTED}


def _accuracies(axes: Axes, methods: dict[str, list[Outcome]], title: str) -> None:
    """One dot per seed, a bar at their mean, and a line for the start model."""
    colours = _colours(list(methods))
    shown = [method for method in methods if method != START]
    for place, method in enumerate(shown):
        values = [outcome.accuracy() for outcome in methods[method]]
        axes.bar(place, mean(values), width=0.6, color=colours[method], alpha=0.35)
        axes.plot([place] * len(values), values, "o", color=colours[method], markersize=5)
        axes.annotate(f"{mean(values):.2f}", (place, 0.03), ha="center", fontsize=9)
    if START in methods:
        axes.axhline(mean(outcome.accuracy() for outcome in methods[START]), color=MUTED, lw=1, ls="--")
    axes.set_xticks(range(len(shown)), shown)
    axes.set_ylim(0, 1)
    axes.set_title(title)


def _pass_curves(axes: Axes, methods: dict[str, list[Outcome]], title: str) -> None:
    colours = _colours(list(methods))
    for method, outcomes in methods.items():
        n = outcomes[0].evaluation[0].n
        ks = [2**power for power in range(n.bit_length()) if 2**power <= n]
        values = [mean(outcome.pass_at(k) for outcome in outcomes) for k in ks]
        axes.plot(ks, values, "o-", color=colours[method], label=method, markersize=3, lw=1.6)
    if methods:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.legend(ncols=2)
    axes.set_xlabel("k")
    axes.set_ylim(None, 1)
    axes.set_title(title)


def _gammas(axes: Axes, gammas: dict[float, list[Outcome]]) -> None:
    places = list(range(len(gammas)))
    values = [[outcome.accuracy() for outcome in outcomes] for outcomes in gammas.values()]
    colour = method_colours(["hpt"])["hpt"]
    for place, found in zip(places, values, strict=True):
        axes.plot([place] * len(found), found, "o", color=colour, markersize=5)
    axes.plot(places, [mean(found) for found in values], "-", color=colour)
    axes.set_xticks(places, [f"{round(8 * gamma)}/8" for gamma in gammas])
    axes.set_xlabel("gamma: SFT where at most this share of the rollouts is right")
    axes.set_title("HPT's accuracy by gamma, clean demonstrations")


def _costs(axes: Axes, methods: dict[str, list[Outcome]]) -> None:
    colours = _colours(list(methods))
    for method, outcomes in methods.items():
        if method != START:
            seconds = [outcome.seconds for outcome in outcomes]
            accuracies = [outcome.accuracy() for outcome in outcomes]
            axes.plot(seconds, accuracies, "o", color=colours[method], label=method)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("seconds of rollouts, verification and training")
    axes.legend(ncols=2)
    axes.set_title("Accuracy and cost, clean demonstrations")
