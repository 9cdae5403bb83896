"""The numbers of a step that are shown while a run goes on."""

from __future__ import annotations

_EVALUATION = "eval/accuracy"
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
    """Formats the metrics of steps. The last evaluation goes on being shown, with its step."""

    def __init__(self) -> None:
        self._evaluation = ""

    def text(self, metrics: dict[str, float]) -> str:
        """As in "reward 0.53  sft 41%  loss 0.012  held-out 33.0%  950 tokens/s  1.92 s a step  peak 0.8 GiB"."""
        shown = {key: text.format(metrics[key]) for key, text in _SHOWN.items() if key in metrics}
        if _EVALUATION in shown:
            self._evaluation = f"{shown[_EVALUATION]} at step {int(metrics['step'])}"
        elif self._evaluation:
            shown[_EVALUATION] = self._evaluation
        return "  ".join(shown[key] for key in _SHOWN if key in shown)
