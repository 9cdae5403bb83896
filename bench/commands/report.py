"""Size, time and memory of `hpt report` for a large made-up run, and how fast its page works in Chromium.

The run has the records of 500 steps with 1,024 rollouts each unless told otherwise: responses of about 2,000
characters, one in twenty of 20,000. Times in Chromium are of one opening of the page from a file, without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hpt.report.rollout_data import FOLDER

from ..commit import last_commit
from ..losses.measure import processor
from ..output import output_path
from ..report.chromium import find_browser, probe
from ..report.made_up_run import write_run

_TIMES = """
  const numbers = { open: performance.now() - began };
  const timed = async (name, action, test) => {
    const start = performance.now();
    action();
    await wait(test);
    await new Promise((resolve) => frame.contentWindow.requestAnimationFrame(() => setTimeout(resolve)));
    numbers[name] = performance.now() - start;
  };
  const form = find("#rollouts form");
  const count = () => find(".count").textContent;
  const choose = (name, value) => () => {
    form.elements[name].value = value;
    form.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const before = count();
  await wait(() => find(".panel .passage"));
  numbers["first rollout"] = performance.now() - began;
  await timed("filter", choose("ended", "1"), () => count() !== before);
  await timed("filter by two", choose("least length", "6000"), () => true);
  form.reset();
  await wait(() => count() === before);
  await timed("sort", () => find("th.column-tokens button").click(),
              () => find("th.column-tokens[aria-sort=descending]"));
  const shown = find(".panel").dataset.shown;
  await timed("open a rollout", () => find(".list tbody a").click(),
              () => find(".panel").dataset.shown !== shown && find(".panel[aria-busy=false] .passage"));
  report(numbers);
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--questions", type=int, default=128, help="per step")
    parser.add_argument("--n", type=int, default=8, help="rollouts per question")
    parser.add_argument("--run", type=Path, help="keep the made-up run here, or measure the one that is here")
    parser.add_argument("--out", type=output_path, help="write OUT.json")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run = args.run or Path(folder) / "run"
        if not (run / "metrics.jsonl").is_file():
            write_run(run, args.steps, args.questions, args.n)
        numbers = measure(run, Path(folder) / "report")
    numbers["command"] = shlex.join(["python", "-m", "bench", "report", *argv])
    print(json.dumps(numbers, indent=1))
    if args.out:
        args.out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    return 0


def measure(run: Path, output: Path) -> dict[str, Any]:
    """Sizes in MB (10^6 bytes), times in seconds, those in the browser in milliseconds, memory in MiB."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "hpt", "report", str(run), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{shlex.join(command)} failed")
    seconds = time.perf_counter() - began
    browser = find_browser()
    return {
        "rollouts, MB": _megabytes(run / "rollouts"),
        "write, s": round(seconds, 1),
        "peak memory, MiB": round(usage.ru_maxrss / 1024),
        "page, MB": _megabytes(output / "report.html"),
        "folder, MB": _megabytes(output / FOLDER),
        "in the browser, ms": _rounded(probe(browser, output / "report.html", _TIMES)) if browser else None,
        "browser": _version(browser),
        "processor": processor("cpu"),
        "cores": os.cpu_count(),
        "commit": last_commit("hpt/report", "bench/report"),
    }


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*")
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 1)


def _rounded(numbers: dict[str, float]) -> dict[str, int]:
    return {name: round(value) for name, value in numbers.items()}


def _version(browser: str | None) -> str | None:
    if browser is None:
        return None
    return subprocess.run([browser, "--version"], capture_output=True, text=True).stdout.strip()
