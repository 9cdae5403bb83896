"""Small calls of a backend against float64: values, gradients, and bits that must not change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..api import fused_policy_loss, linear_logprobs
from ..objective import Objective
from ..presets import CISPO, DAPO, DFT, GRPO, GSPO, LUFFY, PPO, REINFORCE, SAPO, SFT, SRFT
from .finding import Finding, at_most, same_bits

# The project's bounds on errors against float64: log-probabilities absolutely, gradients by norm.
BOUNDS = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (1e-4, 1e-2), torch.float16: (1e-4, 1e-2)}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in BOUNDS}
# Every 97th row has logits so large that its targets are far outside the range of fp32's exp.
LARGE_ROWS, LARGE = slice(None, None, 97), 40
CALLS = ("presets in one call", "regularised", "bias, soft-cap, temperature", "two passes")


def check_values(
    device: str,
    dtype: str,
    backend: str = "triton",
    n: int = 700,
    width: int = 192,
    v: int = 1031,
    calls: Sequence[str] = CALLS,
) -> Iterator[Finding]:
    """Losses with every preset, regularisers and options of the head, against the reference backend.

    The memory that a backend does not initialise holds NaN.
    """
    hidden, weight, targets, options = _inputs(n, width, v, DTYPES[dtype], device)

    def run(backend: str, objectives: list[Objective], extra: dict[str, Any]) -> list[Tensor]:
        out = fused_policy_loss(hidden, weight, targets, objectives, backend=backend, **options | extra)
        return [out.logprobs.detach(), *torch.autograd.grad(out.loss, [hidden, weight])]

    all_calls = _calls(n, v, device)
    for name in calls:
        call = all_calls[name]
        with poisoned_memory():
            got, again = run(backend, *call), run(backend, *call)
        yield from _compare(f"{dtype}, D {width}, {name}", got, again, run("reference", *call), BOUNDS[DTYPES[dtype]])


@torch.no_grad()
def check_bits(
    device: str, dtype: str, backend: str = "triton", n: int = 700, width: int = 192, v: int = 1031
) -> Iterator[Finding]:
    """A token's log-probability must not depend on its batch."""
    hidden, weight, targets, _ = _inputs(n, width, v, DTYPES[dtype], device)

    def logprobs(rows: Tensor) -> Tensor:
        return linear_logprobs(hidden[rows], weight, targets[rows], backend=backend).logprobs

    what = f"{dtype}, D {width}"
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1)).to(device)
    whole = logprobs(torch.arange(n, device=device))
    yield same_bits(f"{what}: permuted", torch.equal(logprobs(order), whole[order]))
    for size in (1, 3, 65):
        parts = torch.cat([logprobs(rows) for rows in order.split(size)[:4]])
        yield same_bits(f"{what}: in pieces of {size}", torch.equal(parts, whole[order[: 4 * size]]))
    out = fused_policy_loss(
        hidden, weight, targets, GRPO(), advantages=torch.ones_like(whole), old_logprobs=whole, backend=backend
    )
    yield same_bits(f"{what}: on-policy ratio is 1", bool((out.ratio == 1).all()))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN (for integers their largest value), so that what nobody wrote shows in the result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _inputs(n: int, d: int, v: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    wide_hidden = torch.randn(n, d, generator=generator)
    wide_weight = torch.randn(v, d, generator=generator) * 2 / d**0.5
    wide_hidden[LARGE_ROWS] *= LARGE
    hidden = wide_hidden.to(device, dtype).requires_grad_()
    weight = wide_weight.to(device, dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), generator=generator).to(device)
    now = linear_logprobs(hidden, weight, targets, backend="reference").logprobs.detach().cpu()
    options = {
        "advantages": torch.randn(n, generator=generator),
        "old_logprobs": now + 0.2 * torch.randn(n, generator=generator),
        "ref_logprobs": now + 0.2 * torch.randn(n, generator=generator),
        "sequence_ids": torch.randint(0, 20, (n,), generator=generator),
        "mask": torch.rand(n, generator=generator) < 0.9,
    }
    return hidden, weight, targets, {name: x.to(device) for name, x in options.items()}


def _calls(n: int, v: int, device: str) -> dict[str, tuple[list[Objective], dict[str, Any]]]:
    """Objectives and further arguments of each call, by name."""
    presets = [
        SFT(), REINFORCE(), PPO(dual_clip=3.0), GRPO(), DAPO(), CISPO(), CISPO(drop=True), SRFT(), LUFFY(), DFT(),
        SAPO(),
    ]  # fmt: skip
    mixed: dict[str, Any] = {"objective_index": torch.arange(n, device=device) % len(presets)}
    bias = torch.linspace(-1, 1, v, device=device)
    calls: list[tuple[list[Objective], dict[str, Any]]] = [
        (presets, mixed),
        (presets, mixed | {"entropy_coef": 0.05, "kl_coef": 0.1}),
        (presets, mixed | {"bias": bias, "softcap": 20.0, "temperature": 0.7}),
        ([GSPO(0.01, 0.01)], {}),
    ]
    return dict(zip(CALLS, calls, strict=True))


def _compare(
    what: str, got: list[Tensor], again: list[Tensor], exact: list[Tensor], bounds: tuple[float, float]
) -> Iterator[Finding]:
    """got, again, exact: log-probabilities, dh and dW."""
    # Rounding errors grow with the logits.
    error = (got[0] - exact[0]).abs()
    error[LARGE_ROWS] /= LARGE
    yield at_most(f"{what}: log-probabilities", float(error.max()), bounds[0])
    for part, a, b in zip(("dh", "dW"), got[1:], exact[1:], strict=True):
        yield at_most(f"{what}: {part}", relative_error(a, b), bounds[1])
    yield same_bits(f"{what}: twice", all(torch.equal(a, b) for a, b in zip(got, again, strict=True)))


def relative_error(got: Tensor, exact: Tensor) -> float:
    """The norm of the error, relative to the norm of `exact`."""
    return float((got.double() - exact.double()).norm() / exact.double().norm())
