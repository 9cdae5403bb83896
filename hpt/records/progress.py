"""Shows the progress of a run: step, reward, share of SFT questions, entropy, response length, accuracy."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_SHOWN = {
    "reward/mean": "reward {:.2f}",
    "gate/sft_share": "sft {:.0%}",
    "entropy/mean": "entropy {:.2f}",
    "response/length": "length {:.0f}",
    "eval/accuracy": "held-out {:.1%}",
}


class Progress:
    """A progress bar on a terminal; elsewhere one plain line per tenth of the run. done: steps of earlier processes."""

    def __init__(self, steps: int, done: int, console: Console) -> None:
        self.steps = steps
        self.console = console
        self.latest: dict[str, str] = {}
        self.bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=steps, completed=done, numbers="")

    def show(self, metrics: dict[str, float]) -> None:
        step = int(metrics["step"])
        self.latest |= {key: text.format(metrics[key]) for key, text in _SHOWN.items() if key in metrics}
        numbers = "  ".join(self.latest[key] for key in _SHOWN if key in self.latest)
        self.bar.update(self.task, completed=step, numbers=numbers)
        if self.bar.disable and (step % max(1, self.steps // 10) == 0 or step == self.steps):
            self.console.print(f"step {step}/{self.steps}  {numbers}")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
