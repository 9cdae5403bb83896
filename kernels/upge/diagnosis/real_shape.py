"""A real model's head: one chunk of tokens against float64, and its time beside the bare GEMMs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..api import fused_policy_loss, linear_logprobs
from ..presets import REINFORCE
from .checks import BOUNDS, DTYPES, poisoned_memory, relative_error
from .finding import Finding, at_most, note, same_bits
from .timing import bare_gemms, gpu_seconds

BLOCK = 8192  # vocabulary entries at once in float64


def check_head(
    device: str, v: int, width: int, n: int = 2048, dtype: str = "bfloat16", backend: str = "triton"
) -> Iterator[Finding]:
    """Log-probabilities, and some rows of dh and dW, against float64; the same bits twice, alone and in the batch."""
    hidden, weight, targets, advantages = _inputs(device, dtype, n, width, v)
    bounds = BOUNDS[DTYPES[dtype]]

    def run() -> list[Tensor]:
        out = fused_policy_loss(hidden, weight, targets, REINFORCE(), advantages=advantages, backend=backend)
        return [out.logprobs.detach(), *torch.autograd.grad(out.loss, [hidden, weight])]

    with poisoned_memory():
        logprobs, dh, dw = run()
    rows = torch.linspace(0, n - 1, min(n, 64), device=device).long()
    entries = torch.linspace(0, v - 1, min(v, 256), device=device).long()
    exact = _exact(hidden.detach(), weight.detach(), targets, advantages / n, rows, entries)
    what = f"{dtype}, {n} x {width} x {v}"
    yield at_most(f"{what}: log-probabilities", float((logprobs - exact[0]).abs().max()), bounds[0])
    for name, got, wanted in (("dh", dh[rows], exact[1]), ("dW", dw[entries], exact[2])):
        finding = at_most(f"{what}: {name}", relative_error(got, wanted), bounds[1])
        finding["found"] += f"; signed mean error, relative: {_signed_mean_error(got, wanted):.0e}"
        yield finding
    yield same_bits(f"{what}: twice", all(map(torch.equal, [logprobs, dh, dw], run())))
    with torch.no_grad():
        middle = slice(n // 2, n // 2 + 1)
        alone = linear_logprobs(hidden[middle], weight, targets[middle], backend=backend).logprobs
    yield same_bits(f"{what}: a token alone", torch.equal(alone, logprobs[middle]))


def time_head(
    device: str, v: int, width: int, n: int = 8192, backend: str = "triton", repeats: int = 10
) -> Iterator[Finding]:
    """Forward and backward in bfloat16 beside the three bare GEMMs. On a GPU."""
    hidden, weight, targets, advantages = _inputs(device, "bfloat16", n, width, v)

    def run() -> None:
        out = fused_policy_loss(hidden, weight, targets, REINFORCE(), advantages=advantages, backend=backend)
        torch.autograd.grad(out.loss, [hidden, weight])

    gemms = partial(bare_gemms, hidden.detach(), weight.detach())
    for _ in range(2):  # warm up
        run()
        gemms()
    pairs = [(gpu_seconds(run), gpu_seconds(gemms)) for _ in range(repeats)]  # in turn, for the same clock
    ours, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    rate = 6 * n * width * v / bare / 1e12
    yield note(
        f"forward and backward of {n} tokens",
        f"{1e3 * ours:.1f} ms, {ours / bare:.2f} times three bare GEMMs ({1e3 * bare:.1f} ms, {rate:.0f} TFLOP/s)",
    )


def _signed_mean_error(got: Tensor, exact: Tensor) -> float:
    """Of the entries' magnitudes, relative to their mean; negative if they are too small on average.

    Truncated operands show here; rounded ones do not.
    """
    return float((got.double() * exact.sign()).sum() / exact.abs().sum() - 1)


def _inputs(device: str, dtype: str, n: int, width: int, v: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets and advantages."""
    generator = torch.Generator(device).manual_seed(0)
    randn = partial(torch.randn, device=device, generator=generator)
    hidden = randn(n, width).to(DTYPES[dtype]).requires_grad_()
    weight = randn(v, width).mul_(3 / width**0.5).to(DTYPES[dtype]).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,), device=device, generator=generator), randn(n)


def _exact(
    hidden: Tensor, weight: Tensor, targets: Tensor, factor: Tensor, rows: Tensor, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: log-probabilities (N,), and of -sum factor log p the gradient dh of `rows` and dW of `entries`."""
    wide, factor = hidden.double(), factor.double()[:, None]
    blocks = weight.split(BLOCK)
    lse = torch.stack([(wide @ block.double().t()).logsumexp(-1) for block in blocks]).logsumexp(0)
    logprobs = (wide * weight[targets].double()).sum(-1) - lse
    dh = -weight[targets[rows]].double()
    for block in blocks:
        dh += (wide[rows] @ block.double().t() - lse[rows, None]).exp() @ block.double()
    p = (wide @ weight[entries].double().t() - lse[:, None]).exp()
    p -= (targets[:, None] == entries).double()
    return logprobs, factor[rows] * dh, (factor * p).t() @ wide
