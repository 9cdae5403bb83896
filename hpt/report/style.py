"""The look of every figure: colours that colour-blind readers can tell apart, matplotlib settings, file formats."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1f24", "#68707a", "#e3e6ea", "#fefefe"
BLUE, PURPLE = "#0072b2", "#7a4a9e"
# Colours that become CSS variables of the page, since they need other values on a dark page.
_CSS_NAMES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--card", BLUE: "--blue", PURPLE: "--purple"}

# The palette of Okabe and Ito (2008), in an order that keeps neighbours far apart.
_CYCLE = (BLUE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", PURPLE, "#8c6d31")
# A method has the same colour in every report.
_METHOD_COLOURS = {
    "hpt": BLUE,
    "grpo": "#d55e00",
    "sft": "#009e73",
    "sft-then-grpo": "#cc79a7",
    "luffy": "#e69f00",
    "srft": PURPLE,
}
GATE_COLOURS = {"none": "#e8893c", "some": "#9cc3e4", "all": "#2a6a9e"}
VERDICT_COLOURS = {
    "correct": "#2a6a9e",
    "incorrect": "#b9c0c9",
    "unparsable": "#e8893c",
    "timeout": "#8e3b6f",
}
PHASE_COLOURS = {
    "start": "#e69f00",
    "rollout": BLUE,
    "verify": "#56b4e9",
    "train": "#d55e00",
    "eval": "#009e73",
    "checkpoint": "#cc79a7",
}
GRADE_COLOURS = ("#56b4e9", "#e69f00", "#d55e00", "#cc79a7", "#009e73", BLUE)
SHARE_COLOURS = ("#2273b414", "#2273b4")  # from never to always right; half transparent, for a light and a dark page
GAMMA_COLOURS = ("#9cc3e4", "#0072b2", "#12304d")
SKIPPED = "#c0392b"
# Curves that coincide are drawn over each other: the gaps are as wide as the dashes, so that each is seen.
DASHES: tuple[Any, ...] = ("-", (0, (3.5, 3.5)), (0, (1.2, 2.6)), (0, (4, 2.6, 1.2, 2.6)))

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures look the same everywhere
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.6,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # names of runs and grades may have a $
    "svg.fonttype": "path",
    "svg.hashsalt": "hpt",  # so that the same run gives the same page, byte for byte
}


def styled() -> AbstractContextManager[None]:
    """Context in which figures are made and drawn. It restores matplotlib's settings at its end."""
    return matplotlib.rc_context(_SETTINGS)


def method_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label (a method, perhaps followed by settings); all different if there are enough colours."""
    colours: dict[str, str] = {}
    for label in labels:
        own = _METHOD_COLOURS.get(label.split(",")[0])
        if own and own not in colours.values():
            colours[label] = own
    for label in labels:
        free = [colour for colour in _CYCLE if colour not in colours.values()]
        colours.setdefault(label, free[0] if free else _CYCLE[len(colours) % len(_CYCLE)])
    return colours


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    own_dpi = figure.dpi
    figure.set_facecolor(PAPER)
    figure.set_dpi(dpi)
    # Not print_figure, which draws everything twice.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    figure.set_dpi(own_dpi)
    return buffer.getvalue()


def to_svg(figure: Figure, prefix: str) -> str:
    """Inline SVG whose colours are CSS variables of the page, so that it follows the light or dark theme.

    prefix: makes the figure's ids unique on the page.
    """
    buffer = io.StringIO()
    figure.set_facecolor("none")
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, name in _CSS_NAMES.items():
        svg = svg.replace(colour, f"var({name})")
    for size in ("height", "width"):  # the page scales it
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    return svg
