"""One pass over the head: the policy loss inside the model's forward, with the numbers that TRL's formulas need.

TRL's own method then works on detached log-probabilities and entropies. So it gives the loss's value and every metric,
and the fused pass gives the gradient.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upge.api import fused_policy_loss
from upge.objective import Objective

from .logprobs import Scores, scored_by


class FusedPass:
    """Stands in for TRL's autograd function during one forward, and keeps the loss.

    objectives: as in `fused_policy_loss`.
    mask:       (B, C) bool, True for the completion tokens that count; all, if None. Others have no logits. They
                report `old_logprobs` as their log-probability, so that every ratio of theirs is 1.
    arguments:  of `fused_policy_loss`. Tensors are (B, C), or broadcast to it.
    loss:       () float32, with its graph, after the forward.

    The C columns are the last of the S columns of the labels. The model gets the object whole, so that no wrapper
    casts its tensors.
    """

    loss: Tensor

    def __init__(self, objectives: Objective | Sequence[Objective], mask: Tensor | None = None, **arguments: Any):
        self.objectives = objectives
        self.mask = mask
        self.arguments = arguments
        self.labelled: Tensor | None = None  # (B, S) bool: tokens that TRL scores

    def through(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model, called with this pass. The loss is taken from what the outermost wrapper returns: ZeRO-3 gathers
        the head for the backward when the gradient reaches that tensor."""

        def call(*args: Any, **kwargs: Any) -> Any:
            output = model(*args, fused_pass=self, **kwargs)
            self.loss = output.loss
            return output

        return call

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        logit_scale: float,
        outputs: tuple[str, ...],
    ) -> Scores:
        """TRL gives the labelled tokens alone, or all B S of them, depending on the device."""
        assert self.labelled is not None
        self.labelled = self.labelled.to(hidden.device)
        rows = self.labelled.flatten() if len(hidden) != self.labelled.numel() else slice(None)

        def per_token(value: Tensor) -> Tensor:
            return self._spread(value).flatten()[rows]

        mask = self.labelled if self.mask is None else self.labelled & self._spread(self.mask)
        mask = mask.flatten()[rows]
        arguments: dict[str, Any] = {
            name: per_token(value) if isinstance(value, Tensor) else value for name, value in self.arguments.items()
        }
        out = fused_policy_loss(
            hidden,
            weight,
            targets,
            self.objectives,
            mask=mask,
            bias=bias,
            temperature=temperature,
            softcap=softcap,
            logit_scale=logit_scale,
            evaluate="all",
            **arguments,
        )
        self.loss = out.loss
        logprobs, old = out.logprobs, arguments.get("old_logprobs")
        if old is not None:
            logprobs = torch.where(mask, logprobs, old)
        return logprobs, out.entropy, None, None, out.top1 if "is_top1" in outputs else None

    def _spread(self, value: Tensor) -> Tensor:
        """(B, C), or what broadcasts to it, over the S columns of the labels."""
        assert self.labelled is not None
        rows, columns = self.labelled.shape
        if value.dim() == 2 and value.shape[1] > 1:
            value = nn.functional.pad(value, (columns - value.shape[1], 0))
        return value.to(self.labelled.device).expand(rows, columns)


def takes_fused_pass(model: Any) -> None:
    """Let `model(..., labels=..., fused_lm_head=True, fused_pass=...)` compute the loss of a `FusedPass`.

    model: with TRL's fused head. The loss becomes the output's `loss`, where wrappers that search the outputs for what
    needs a gradient (DDP, FSDP, ZeRO-3) find it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    scores = base.forward.__func__  # TRL has set a method; unbound, so that a copy uses itself

    @functools.wraps(scores)
    def forward(self: nn.Module, *args: Any, fused_pass: FusedPass | None = None, **kwargs: Any) -> Any:
        if fused_pass is None:
            return scores(self, *args, **kwargs)
        shifted = kwargs.get("shift_labels")
        fused_pass.labelled = (kwargs["labels"][:, 1:] if shifted is None else shifted) != -100
        with scored_by(fused_pass):
            output = scores(self, *args, **kwargs)
        output.loss = fused_pass.loss
        return output

    base.forward = types.MethodType(forward, base)
