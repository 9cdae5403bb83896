"""Accuracy of every method, pass@k, accuracy against cost, and the gate's gamma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from hpt.report.style import MUTED

from ..outcomes import Outcome, by_condition, by_gamma
from ..statistics import over_seeds
from ..task import START, TITLES
from .style import IN_LINES, colour_of, figure, line_style, title_of


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    conditions = {TITLES[condition]: methods for condition, methods in by_condition(outcomes).items()}
    gammas = by_gamma(outcomes, next(iter(TITLES)))
    with figure(path, 3 + (len(gammas) > 1), len(conditions), (6.5 * len(conditions), 13)) as axes:
        for column, (title, methods) in enumerate(conditions.items()):
            _accuracies(axes[0][column], methods, f"Held-out accuracy, {title}")
            _pass_curves(axes[1][column], methods, f"pass@k, {title}")
            _costs(axes[2][column], methods, f"Accuracy and tokens, {title}")
        if len(gammas) > 1:
            _gammas(axes[3][0], gammas)
            for unused in axes[3][1:]:
                unused.set_axis_off()


def _accuracies(axes: Axes, methods: dict[str, list[Outcome]], title: str) -> None:
    """A dot per seed, and the mean with its interval; the best method on top."""
    shown = sorted((name for name in methods if name != START), key=lambda name: _accuracy(methods[name]))
    for place, method in enumerate(shown):
        values = [outcome.accuracy() for outcome in methods[method]]
        estimate = over_seeds(values)
        width = 0 if math.isnan(estimate.half_width) else estimate.half_width
        axes.plot(values, [place] * len(values), "o", color=colour_of(method), markersize=4, alpha=0.4)
        axes.errorbar(estimate.mean, place, xerr=width, fmt="|", color=colour_of(method), capsize=3, markersize=12)
    if START in methods:
        axes.axvline(_accuracy(methods[START]), color=MUTED, lw=1, ls="--", label="start model")
        axes.legend(loc="lower right")
    left, right = axes.get_xlim()
    axes.set_xlim(max(0, left), min(1, right))  # the interval of two seeds may be wider
    axes.set_yticks(range(len(shown)), shown)
    axes.set_title(title)


def _pass_curves(axes: Axes, methods: dict[str, list[Outcome]], title: str) -> None:
    ks = [1]
    for method in [method for method in methods if method in (START, *IN_LINES)]:
        n = methods[method][0].evaluation[0].n
        ks = [2**power for power in range(n.bit_length()) if 2**power <= n]
        values = [mean(outcome.pass_at(k) for outcome in methods[method]) for k in ks]
        axes.plot(ks, values, label=title_of(method), **line_style(method))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xlabel("k")
    axes.set_ylim(None, 1.01)
    axes.legend(ncols=2, handlelength=3)
    axes.set_title(title)


def _costs(axes: Axes, methods: dict[str, list[Outcome]], title: str) -> None:
    """Tokens trained on and generated, together. The names stand in a column, since dots lie close to each other."""
    shown = sorted((name for name in methods if name != START), key=lambda name: _accuracy(methods[name]))
    axes.set_xscale("log")
    for place, method in enumerate(shown):
        tokens = [outcome.total("train/tokens") + outcome.total("response/length_sum") for outcome in methods[method]]
        dot = mean(tokens), _accuracy(methods[method])
        axes.plot(*dot, "o", color=colour_of(method))
        axes.annotate(
            method,
            dot,
            (1.03, (place + 0.5) / len(shown)),
            textcoords="axes fraction",
            fontsize=8,
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colour_of(method), "lw": 0.6, "alpha": 0.6},
        )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens trained on and generated")
    axes.set_title(title)


def _gammas(axes: Axes, gammas: dict[float, list[Outcome]]) -> None:
    places = range(len(gammas))
    estimates = [over_seeds([outcome.accuracy() for outcome in outcomes]) for outcomes in gammas.values()]
    widths = [0 if math.isnan(estimate.half_width) else estimate.half_width for estimate in estimates]
    axes.errorbar(places, [estimate.mean for estimate in estimates], yerr=widths, fmt="o-", capsize=3)
    axes.set_xticks(list(places), [f"{round(8 * gamma)}/8" for gamma in gammas])
    axes.set_xlabel("gamma: SFT where at most this share of the rollouts is right")
    axes.set_title("HPT's accuracy by gamma, clean demonstrations")


def _accuracy(outcomes: Sequence[Outcome]) -> float:
    return mean(outcome.accuracy() for outcome in outcomes)
