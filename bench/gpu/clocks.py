"""The GPU's clock and power while something runs."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Any

MILLISECONDS = 200
FIELDS = "clocks.sm,power.draw,utilization.gpu"


class Clocks:
    """Samples nvidia-smi until the `with` block ends; afterwards `busy` has what was seen while the GPU was busy."""

    busy: dict[str, Any]

    def __enter__(self) -> Clocks:
        self.busy = {}
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        command = ["nvidia-smi", f"--id={device}", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
        try:
            self.process: subprocess.Popen[str] | None = subprocess.Popen(
                [*command, f"--loop-ms={MILLISECONDS}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:  # a machine without a GPU
            self.process = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.terminate()
            self.busy = summary(self.process.communicate()[0])


def summary(samples: str) -> dict[str, Any]:
    """Lowest and highest clock in MHz and the highest power in W, of the samples with the GPU at work."""
    rows = [[float(cell) for cell in line.split(",")] for line in samples.splitlines() if _is_complete(line)]
    busy = [(clock, power) for clock, power, utilization in rows if utilization >= 50]
    if not busy:
        return {}
    clocks, powers = zip(*busy, strict=True)
    return {"clock_mhz": [min(clocks), max(clocks)], "power_w": max(powers)}


def _is_complete(line: str) -> bool:
    """Three numbers. The last line may be cut off, and a field that a GPU does not have reads [N/A]."""
    cells = line.split(",")
    return len(cells) == 3 and all(cell.strip().replace(".", "", 1).isdigit() for cell in cells)
