"""The loss of a token under its objective, and its coefficient g = d loss / d log pi, on (n,) float32 vectors.

    likelihood "ratio":  loss = -W gain A,      g = -W factor A
    likelihood "log":    loss = -W factor A l,  g = -W factor A

gain is what the stabilization mask makes of r = pi / pi_ref, and factor = r d gain / d r; for WeightClip, factor is the
clipped r itself. W is the token's weight times its truncated importance ratio. log r is cut to [-max_log_ratio,
max_log_ratio], so that no gradient overflows; where it is cut, gain no longer depends on l.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import debugging
from .inputs import TokenInputs, UserBatch
from .objective import Clip, Objective, ReferencePolicy, Shaping, SoftGate, TokenLoss, WeightClip
from .sequences import sequence_mean


@dataclass(frozen=True)
class SurrogateLoss:
    """Per token, each (n,), detached: the weighted loss, g, r and stable, and q = d loss / d entropy (None: 0)."""

    loss: Tensor
    g: Tensor
    ratio: Tensor
    stable: Tensor
    q: Tensor | None = None


@dataclass(frozen=True)
class Ratio:
    """r = pi / pi_ref, and whether it follows pi: False where log r was cut."""

    value: Tensor
    uncut: Tensor


def preset_loss(objective: Objective, tokens: TokenInputs, logprobs: Tensor, max_log_ratio: float) -> SurrogateLoss:
    """The loss of the tokens that follow an objective made of the four parts."""
    r = policy_ratio(objective.reference, tokens, logprobs, max_log_ratio)
    if objective.advantage == "one":
        advantages = torch.ones_like(logprobs)
    else:
        assert tokens.advantages is not None
        advantages = tokens.advantages
    gain, factor, stable = _masked(objective, r.value, advantages)
    weighted = tokens.policy_weights * advantages
    if objective.likelihood == "log":
        return SurrogateLoss(-weighted * factor * logprobs, -weighted * factor, r.value, stable & r.uncut)
    g = -weighted * (factor * r.uncut)
    if objective.reference == "sequence":
        # log s is the mean of log r over the sequence, so a token's g is the mean of -W factor A over it.
        assert tokens.sequence_ids is not None
        g = sequence_mean(g.double(), tokens.sequence_ids).float()
    return SurrogateLoss(-weighted * gain, g, r.value, stable & r.uncut)


def policy_ratio(reference: ReferencePolicy, tokens: TokenInputs, logprobs: Tensor, max_log_ratio: float) -> Ratio:
    """r of each token. Without `old_logprobs` the tokens are on-policy, and pi / pi_old = 1."""
    always = torch.ones_like(logprobs, dtype=torch.bool)
    if reference == "one":
        return Ratio(logprobs.exp(), always)
    if reference == "policy" or tokens.old_logprobs is None:
        return Ratio(torch.ones_like(logprobs), always)
    log_ratio = logprobs - tokens.old_logprobs
    if reference == "sequence":
        assert tokens.sequence_ids is not None
        log_ratio = sequence_mean(log_ratio.double(), tokens.sequence_ids).float()
    return Ratio(log_ratio.clamp(-max_log_ratio, max_log_ratio).exp(), log_ratio.abs() <= max_log_ratio)


def _masked(objective: Objective, r: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The stabilization mask: gain and factor (see above), and stable."""
    mask = objective.mask
    unchanged = torch.ones_like(r, dtype=torch.bool)
    if isinstance(mask, Clip):
        too_high = (advantages > 0) & (r > 1 + mask.high)
        too_low = (advantages < 0) & (r < 1 - mask.low)
        gain = torch.where(too_high, 1 + mask.high, torch.where(too_low, 1 - mask.low, r))
        stable = ~(too_high | too_low)
        if mask.dual is not None:
            above_dual = (advantages < 0) & (r > mask.dual)
            gain = torch.where(above_dual, mask.dual, gain)
            stable &= ~above_dual
        return gain, r * stable, stable
    if isinstance(mask, WeightClip):
        too_high, too_low = r > mask.upper, r < mask.lower
        if mask.drop:
            stable = ~((too_high & (advantages > 0)) | (too_low & (advantages < 0)))
            return r, r * stable, stable
        return r, r.clamp(mask.lower, mask.upper), ~(too_high | too_low)
    if isinstance(mask, Shaping):
        return r / (r + mask.gamma), mask.gamma * r / (r + mask.gamma).square(), unchanged
    if isinstance(mask, SoftGate):
        tau = torch.full_like(advantages, mask.tau_negative).masked_fill(advantages > 0, mask.tau_positive)
        scaled = tau * (r - 1)
        return 4 / tau * torch.sigmoid(scaled), 4 * torch.sigmoid(scaled) * torch.sigmoid(-scaled) * r, unchanged
    return r, r, unchanged


def function_loss(objective: Objective, tokens: TokenInputs, logprobs: Tensor, entropy: Tensor) -> SurrogateLoss:
    """The same for a user-defined function, by autograd on (n,) vectors."""
    if logprobs.numel() == 0:
        return SurrogateLoss(logprobs, logprobs, logprobs, logprobs.bool())
    # inference_mode(False) also turns gradients on. Tensors made in inference mode cannot have any, so copy them.
    with torch.inference_mode(False):
        tokens = tokens.map(torch.clone)
        leaves = [values.detach().clone().requires_grad_() for values in (logprobs, entropy)]
        result = call_function(objective, tokens, *leaves)
        loss = tokens.policy_weights * result.loss.float()
        _check_values(objective, "loss", loss)
        g, q = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    g = torch.zeros_like(logprobs) if g is None else g
    for name, gradient in (("logprobs", g), ("entropy", q)):
        _check_values(objective, f"gradient with respect to {name}", gradient)
    ratio = torch.ones_like(logprobs) if result.ratio is None else result.ratio.detach().float()
    stable = torch.ones_like(logprobs, dtype=torch.bool) if result.stable is None else result.stable
    return SurrogateLoss(loss.detach(), g, ratio, stable, q)


def call_function(objective: Objective, tokens: TokenInputs, logprobs: Tensor, entropy: Tensor) -> TokenLoss:
    """What a user-defined objective returns for n tokens. Raises where that is not a loss (n,) with a gradient."""
    assert objective.function is not None
    result: object = objective.function(logprobs, UserBatch(tokens, entropy, objective.name))
    found = result if isinstance(result, TokenLoss) else TokenLoss(result)  # type: ignore[arg-type]
    required = f"objective {objective.name!r}: its function must return one loss per token,"
    _check_column(f"{required} a tensor", found.loss, logprobs)
    if not found.loss.is_floating_point():
        raise TypeError(f"{required} of a float dtype; got {found.loss.dtype}")
    if logprobs.requires_grad and not found.loss.requires_grad:
        raise ValueError(f"{required} that depends on logprobs or entropy; got one that does not (was it detached?)")
    for name in ("ratio", "stable"):
        if getattr(found, name) is not None:
            _check_column(
                f"objective {objective.name!r}: TokenLoss.{name} must be None or a tensor",
                getattr(found, name),
                logprobs,
            )
    if found.stable is not None and found.stable.dtype != torch.bool:
        raise TypeError(f"objective {objective.name!r}: TokenLoss.stable must be bool; got {found.stable.dtype}")
    return found


def _check_column(required: str, value: object, like: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{required} of shape {tuple(like.shape)}; got {type(value).__name__}")
    if value.shape != like.shape:
        raise ValueError(f"{required} of shape {tuple(like.shape)}; got {tuple(value.shape)}")


def _check_values(objective: Objective, what: str, value: Tensor | None) -> None:
    if value is None or not debugging.reads_values(value.device):
        return
    wrong = ~torch.isfinite(value)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"objective {objective.name!r}: its {what} must be finite; got {value[row].item()} at row {row}"
        )
