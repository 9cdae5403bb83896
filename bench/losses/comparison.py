"""Measure the fused loss and its peers, and by the share of tokens without a signal."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
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
    """One row per method, the bare GEMMs first: seconds, extra bytes, errors, or why it cannot be measured."""
    problem = settings.problem(case)
    methods: dict[str, Callable[[Problem], torch.Tensor]] = {"upge": Problem.fused}
    methods |= {name: PEERS[name] for name in peers}
    rows: dict[str, dict[str, Any]] = {name: {"case": case, "method": name} for name in methods}
    for name, method in methods.items():
        rows[name] |= _first_run(name, method, problem, settings, rows["upge"].get("loss"))
        clear_gradients(problem)
    methods = {name: method for name, method in methods.items() if "unavailable" not in rows[name]}
    gemms: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(settings.repeats):  # methods take turns
        gemms.append(seconds(partial(bare_gemms, problem), settings.device))
        for name, method in methods.items():
            times[name].append(seconds(partial(forward_backward, method, problem), settings.device))
            clear_gradients(problem)
    few = problem.first(min(settings.error_tokens, settings.tokens))
    exact = exact_gradients(few)
    for name, method in methods.items():
        rows[name]["seconds"] = statistics.median(times[name])
        rows[name]["seconds_all"] = times[name]
        rows[name]["dh_error"], rows[name]["dw_error"] = gradient_errors(method, few, exact)
    floor = {"case": case, "method": "gemms", "seconds": statistics.median(gemms), "seconds_all": gemms}
    return [floor, *rows.values()]


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
    times: dict[float, list[float]] = {share: [] for share in NO_SIGNAL}
    gemms: list[float] = []
    for turn in range(settings.repeats + 1):
        floor = seconds(partial(bare_gemms, problems[0.0]), settings.device)
        for share, problem in problems.items():
            taken = seconds(partial(forward_backward, Problem.fused, problem), settings.device)
            clear_gradients(problem)
            if turn:  # the first one warms up
                times[share].append(taken)
        if turn:
            gemms.append(floor)
    base = statistics.median(gemms)
    return [
        {"no_signal": share, "seconds": statistics.median(found), "of_gemms": statistics.median(found) / base}
        for share, found in times.items()
    ]
