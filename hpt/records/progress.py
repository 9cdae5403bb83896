"""The numbers of a step that are shown while a run goes on."""

from __future__ import annotations

_SHOWN = {
    "reward/mean": "reward {:.2f}",
    "gate/sft_share": "sft {:.0%}",
    "train/loss": "loss {:.3g}",
    "eval/accuracy": "held-out {:.1%}",
    "throughput/tokens_per_second": "{:,.0f} tokens/s",
    "time/step": "{:.3g} s a step",
    "memory/peak_gib": "peak {:.1f} GiB",
}


class StepNumbers:
    """Formats the metrics of steps. A number that a step does not have is shown as it was last."""

    def __init__(self) -> None:
        self._latest: dict[str, str] = {}

    def text(self, metrics: dict[str, float]) -> str:
        """As in "reward 0.53  sft 41%  loss 0.012  held-out 33.0%  950 tokens/s  1.92 s a step  peak 0.8 GiB"."""
        self._latest |= {key: text.format(metrics[key]) for key, text in _SHOWN.items() if key in metrics}
        return "  ".join(self._latest[key] for key in _SHOWN if key in self._latest)
