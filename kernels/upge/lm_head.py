"""The language model's head as a module, so that the hooks of FSDP2 and ZeRO-3 gather its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch.nn.functional as F
from torch import Tensor, nn

from .api import fused_policy_loss, linear_logprobs
from .checks import check_scalars, check_unrounded
from .objective import Objective
from .outputs import LogprobsOutput, PolicyLossOutput

# Arguments that bfloat16 would spoil.
ROUNDED = ("weights", "advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs")


class FusedLMHead(nn.Module):
    """A language model's head that returns losses or log-probabilities instead of logits.

    It shares the parameters of the layer it is made from, so a tied embedding stays tied:

        head = upge.FusedLMHead(model.lm_head)             # nn.Linear, with or without bias
        head = upge.FusedLMHead(model.model.embed_tokens)  # nn.Embedding

    layer:   nn.Linear or nn.Embedding with weight (V, D).
    softcap, logit_scale: as in `linear_logprobs`. backend: the default for every call.

    Called with hidden states alone it is the layer itself and returns its logits. So it can stand in for `lm_head` in
    generation: soft-cap and scale are then left to the model, which applies them to what its head returns.

    Sharding: make it a submodule of the model, in place of the layer, and call it inside the model's forward. Then
    `fully_shard` (on it, or on the model around it) and ZeRO-3 gather its parameters as they do for any layer. With a
    `MixedPrecisionPolicy`, pass `cast_forward_inputs=False`: it would round log-probabilities, and is refused.

    Raises TypeError where `layer` is of another type.
    """

    bias: Tensor | None

    def __init__(
        self,
        layer: nn.Linear | nn.Embedding,
        *,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        backend: str = "auto",
    ):
        super().__init__()
        check_scalars(1.0, softcap, logit_scale, -100)
        if not isinstance(layer, (nn.Linear, nn.Embedding)):
            raise TypeError(f"layer: must be a torch.nn.Linear or torch.nn.Embedding; got {type(layer).__name__}")
        self.weight = layer.weight
        self.register_parameter("bias", getattr(layer, "bias", None))
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.backend = backend

    @overload
    def forward(self, hidden: Tensor, targets: None = None) -> Tensor: ...
    @overload
    def forward(self, hidden: Tensor, targets: Tensor, objectives: None = None, **options: Any) -> LogprobsOutput: ...
    @overload
    def forward(
        self, hidden: Tensor, targets: Tensor, objectives: Objective | Sequence[Objective], **options: Any
    ) -> PolicyLossOutput: ...
    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        objectives: Objective | Sequence[Objective] | None = None,
        **options: Any,
    ) -> Tensor | LogprobsOutput | PolicyLossOutput:
        """`fused_policy_loss` with `objectives`, `linear_logprobs` without; they define `options`.

        hidden: (..., D). targets: (...) int64 or int32; without them the result is the layer's logits (..., V).
        """
        if targets is None:
            if objectives is not None or options:
                given = ", ".join((["objectives"] if objectives is not None else []) + list(options))
                raise ValueError(f"targets: must be given with {given}; got None")
            if hidden.shape[-1:] != self.weight.shape[1:]:
                raise ValueError(f"hidden: must have shape (..., {self.weight.shape[1]}); got {tuple(hidden.shape)}")
            return F.linear(hidden, self.weight, self.bias)
        for name in ROUNDED:
            check_unrounded(name, options.get(name))
        settings = {"softcap": self.softcap, "logit_scale": self.logit_scale, "backend": self.backend}
        shared = {"bias": self.bias, **settings, **options}
        if objectives is None:
            return linear_logprobs(hidden, self.weight, targets, **shared)
        return fused_policy_loss(hidden, self.weight, targets, objectives, **shared)

    def extra_repr(self) -> str:
        shape = f"vocabulary={self.weight.shape[0]}, width={self.weight.shape[1]}"
        return f"{shape}, softcap={self.softcap}, logit_scale={self.logit_scale}"
