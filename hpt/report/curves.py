"""Curves along the steps of a run, kept as numerators and denominators so that they are smoothed and added exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """A ratio of sums at each step: its value at `steps[i]` is `numerators[i] / denominators[i]`."""

    steps: np.ndarray  # (n,) int64, ascending
    numerators: np.ndarray  # (n,) float64
    denominators: np.ndarray  # (n,) float64

    def values(self, window: int = 1) -> np.ndarray:
        """(n,) float64: the ratio of the sums over a window of steps around each step.

        window: odd number of entries; windows are shorter at the ends. NaN where the denominators sum to 0.
        """
        reach = window // 2
        windows = [slice(max(i - reach, 0), i + reach + 1) for i in range(len(self.steps))]
        numerators = np.array([self.numerators[part].sum() for part in windows])
        denominators = np.array([self.denominators[part].sum() for part in windows])
        return np.divide(numerators, denominators, out=np.full(len(windows), np.nan), where=denominators != 0)

    @property
    def window(self) -> int:
        """The window of the smoothed line: about a twelfth of the run, odd, at most 25."""
        size = min(25, len(self.steps) // 12)
        return size if size % 2 == 1 else size + 1


def add_curves(curves: Sequence[Curve]) -> Curve:
    """The sums of several runs' numerators and denominators, at the steps that all of them have.

    Empty curves are left out, unless all are empty.
    """
    curves = [curve for curve in curves if len(curve.steps)] or curves[:1]
    common = sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves)))
    kept = [np.isin(curve.steps, common) for curve in curves]
    return Curve(
        np.array(common, np.int64),
        np.sum([curve.numerators[keep] for curve, keep in zip(curves, kept, strict=True)], axis=0),
        np.sum([curve.denominators[keep] for curve, keep in zip(curves, kept, strict=True)], axis=0),
    )
