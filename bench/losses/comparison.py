"""Measure the fused loss and its peers, and by the share of tokens without a signal."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .measure import clear_gradients, exact_gradients, extra_bytes, forward_backward, gradient_errors, seconds
from .peers import PEERS, Unavailable
from .problem import Problem, bare_gemms, make_problem

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NO_SIGNAL = (0.0, 0.25, 0.5, 0.75)
# How far a peer's loss may be from upge's. Logits rounded to bf16 or fp16 are off by 2^-8 or 2^-11 of at most 20 each.
SAME_LOSS = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Settings:
    """What is measured. error_tokens: how many tokens are also computed in float64."""

    shape: str
    tokens: int
    dtype: str
    device: str
    repeats: int
    error_tokens: int = 256

    def problem(self, case: str, no_signal: float = 0.0) -> Problem:
        return make_problem(self.shape, self.tokens, DTYPES[self.dtype], self.device, case, no_signal)


def compare(settings: Settings, case: str, peers: Sequence[str]) -> list[dict[str, Any]]:
    """One row per method, the bare GEMMs first: times, extra bytes, errors, or why it cannot be measured."""
    problem = settings.problem(case)
    methods: dict[str, Callable[[Problem], torch.Tensor]] = {"upge": Problem.fused}
    methods |= {name: PEERS[name] for name in peers}
    rows: dict[str, dict[str, Any]] = {name: {"case": case, "method": name} for name in methods}
    for name, method in methods.items():
        rows[name] |= _first_run(name, method, problem, settings, rows["upge"].get("loss"))
        clear_gradients(problem)
    methods = {name: method for name, method in methods.items() if "unavailable" not in rows[name]}
    runs: dict[str, Callable[[], object]] = {"gemms": partial(bare_gemms, problem)}
    runs |= {name: _timed_run(method, problem) for name, method in methods.items()}
    times = _interleave(runs, settings)
    few = problem.first(min(settings.error_tokens, settings.tokens))
    exact = exact_gradients(few)
    for name, method in methods.items():
        rows[name] |= _summary(times[name], times["gemms"])
        rows[name]["dh_error"], rows[name]["dw_error"] = gradient_errors(method, few, exact)
    floor = {"case": case, "method": "gemms"} | _summary(times["gemms"], times["gemms"])
    return [floor, *rows.values()]


def _timed_run(method: Callable[[Problem], torch.Tensor], problem: Problem) -> Callable[[], None]:
    """Forward and backward. The gradients are freed, as `bare_gemms` frees its results."""

    def run() -> None:
        forward_backward(method, problem)
        clear_gradients(problem)

    return run


def _interleave(runs: Mapping[Any, Callable[[], object]], settings: Settings) -> dict[Any, list[float]]:
    """The seconds of each run in every round. Each round has an order of its own."""
    order, orders = list(runs), random.Random(0)
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(settings.repeats):
        orders.shuffle(order)
        for name in order:
            times[name].append(seconds(runs[name], settings.device))
    return times


def _summary(times: list[float], gemms: list[float]) -> dict[str, Any]:
    """Compared are the best rounds, which other work on the machine disturbed least."""
    return {
        "seconds": min(times),
        "seconds_median": statistics.median(times),
        "seconds_slowest": max(times),
        "of_gemms": min(times) / min(gemms),
        "seconds_all": times,
    }


def _first_run(
    name: str, method: Callable[[Problem], torch.Tensor], problem: Problem, settings: Settings, expected: float | None
) -> dict[str, Any]:
    """Warm up, compare the loss with upge's, and measure memory. Says why if any of that is impossible."""
    run = partial(forward_backward, method, problem)
    gradients = problem.hidden.nbytes + problem.weight.nbytes
    try:
        loss = float(run())
        clear_gradients(problem)
        if expected is not None and not abs(loss - expected) <= SAME_LOSS[settings.dtype]:
            return {"unavailable": f"its loss is {loss:.5f}, not {expected:.5f}"}
        found: dict[str, Any] = {"loss": loss} if name == "upge" else {}
        return found | {"extra_bytes": extra_bytes(run, settings.device, gradients)}
    except Unavailable as why:
        return {"unavailable": str(why)}
    except torch.OutOfMemoryError:
        return {"unavailable": "out of memory"}
    except Exception as error:  # a peer that fails must not end the comparison; the table shows its error
        if name == "upge":
            raise
        return {"unavailable": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}


def sweep_no_signal(settings: Settings) -> list[dict[str, Any]]:
    """The time of the fused GRPO loss by the share of tokens whose advantage is 0, relative to the bare GEMMs."""
    problems = {share: settings.problem("grpo", share) for share in NO_SIGNAL}
    runs: dict[Any, Callable[[], object]] = {"gemms": partial(bare_gemms, problems[0.0])}
    runs |= {share: _timed_run(Problem.fused, problem) for share, problem in problems.items()}
    for run in runs.values():
        run()  # warms up
    times = _interleave(runs, settings)
    return [{"no_signal": share} | _summary(times[share], times["gemms"]) for share in NO_SIGNAL]
