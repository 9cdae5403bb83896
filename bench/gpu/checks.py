"""Checks of the Triton backend against float64 on one device: values, gradients, and bits that must not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import upge
from torch import Tensor

# The project's bounds on errors against float64: log-probabilities absolutely, gradients by norm.
BOUNDS = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (1e-4, 1e-2), torch.float16: (1e-4, 1e-2)}
# Every 97th row has logits so large that its targets are far outside the range of fp32's exp.
LARGE_ROWS, LARGE = slice(None, None, 97), 40


def checks(
    device: str, dtype: torch.dtype, n: int = 700, widths: tuple[int, ...] = (192, 100), v: int = 1031
) -> Iterator[tuple[str, bool]]:
    """(what was checked, whether it held). widths: one that the tiles' step divides, and one that it does not."""
    for width in widths:
        what = f"{str(dtype).removeprefix('torch.')}, D {width}"
        hidden, weight, targets, options = _inputs(n, width, v, dtype, device)
        for name, (objectives, extra) in _calls(n, v, device).items():
            yield from _against_float64(
                hidden, weight, targets, objectives, options | extra, BOUNDS[dtype], f"{what}, {name}"
            )
        yield from _invariance(hidden, weight, targets, what)


def _inputs(n: int, d: int, v: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    wide_hidden = torch.randn(n, d, generator=generator)
    wide_weight = torch.randn(v, d, generator=generator) * 2 / d**0.5
    wide_hidden[LARGE_ROWS] *= LARGE
    hidden = wide_hidden.to(device, dtype).requires_grad_()
    weight = wide_weight.to(device, dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), generator=generator).to(device)
    now = upge.linear_logprobs(hidden, weight, targets, backend="reference").logprobs.detach().cpu()
    options = {
        "advantages": torch.randn(n, generator=generator),
        "old_logprobs": now + 0.2 * torch.randn(n, generator=generator),
        "ref_logprobs": now + 0.2 * torch.randn(n, generator=generator),
        "sequence_ids": torch.randint(0, 20, (n,), generator=generator),
        "mask": torch.rand(n, generator=generator) < 0.9,
    }
    return hidden, weight, targets, {name: x.to(device) for name, x in options.items()}


def _calls(n: int, v: int, device: str) -> dict[str, tuple[list[upge.Objective], dict[str, Any]]]:
    """Objectives and further arguments of each call, by name."""
    presets = [
        upge.SFT(), upge.REINFORCE(), upge.PPO(dual_clip=3.0), upge.GRPO(), upge.DAPO(), upge.CISPO(),
        upge.CISPO(drop=True), upge.SRFT(), upge.LUFFY(), upge.DFT(), upge.SAPO(),
    ]  # fmt: skip
    mixed: dict[str, Any] = {"objective_index": torch.arange(n, device=device) % len(presets)}
    bias = torch.linspace(-1, 1, v, device=device)
    return {
        "presets in one call": (presets, mixed),
        "regularised": (presets, mixed | {"entropy_coef": 0.05, "kl_coef": 0.1}),
        "bias, soft-cap, temperature": (presets, mixed | {"bias": bias, "softcap": 20.0, "temperature": 0.7}),
        "two passes": ([upge.GSPO(0.01, 0.01)], {}),
    }


def _against_float64(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    objectives: list[upge.Objective],
    options: dict[str, Any],
    bounds: tuple[float, float],
    what: str,
) -> Iterator[tuple[str, bool]]:
    def run(backend: str) -> list[Tensor]:
        out = upge.fused_policy_loss(hidden, weight, targets, objectives, backend=backend, **options)
        return [out.logprobs, *torch.autograd.grad(out.loss, [hidden, weight])]

    got, again, want = run("triton"), run("triton"), run("reference")
    # Rounding errors grow with the logits.
    scale = torch.ones(len(targets), device=hidden.device)
    scale[LARGE_ROWS] = LARGE
    logprob_bound, gradient_bound = bounds
    yield f"{what}: log-probabilities", bool(((got[0] - want[0]).abs() <= logprob_bound * scale).all())
    for part, a, b in zip(("dh", "dW"), got[1:], want[1:], strict=True):
        error = float((a.double() - b.double()).norm() / b.double().norm())
        yield f"{what}: {part} ({error:.1e})", error <= gradient_bound
    yield f"{what}: same bits twice", all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@torch.no_grad()
def _invariance(hidden: Tensor, weight: Tensor, targets: Tensor, what: str) -> Iterator[tuple[str, bool]]:
    """A token's log-probability must not depend on its batch."""

    def logprobs(rows: Tensor) -> Tensor:
        return upge.linear_logprobs(hidden[rows], weight, targets[rows], backend="triton").logprobs

    n = len(targets)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1)).to(hidden.device)
    whole = logprobs(torch.arange(n, device=hidden.device))
    yield f"{what}: permuted", torch.equal(logprobs(order), whole[order])
    for size in (1, 3, 65):
        parts = torch.cat([logprobs(rows) for rows in order.split(size)[:4]])
        yield f"{what}: in pieces of {size}", torch.equal(parts, whole[order[: 4 * size]])
    out = upge.fused_policy_loss(
        hidden, weight, targets, upge.GRPO(), advantages=torch.ones_like(whole), old_logprobs=whole, backend="triton"
    )
    yield f"{what}: on-policy ratio is 1", bool((out.ratio == 1).all())
