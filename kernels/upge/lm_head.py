"""The language model's head as a module, so that the hooks of FSDP2 and ZeRO-3 gather its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from torch import Tensor, nn

from .api import fused_policy_loss, linear_logprobs
from .objective import Objective
from .outputs import LogprobsOutput, PolicyLossOutput


class FusedLMHead(nn.Module):
    """A language model's head that returns losses or log-probabilities instead of logits.

    It shares the parameters of the layer it is made from, so a tied embedding stays tied:

        head = upge.FusedLMHead(model.lm_head)             # nn.Linear, with or without bias
        head = upge.FusedLMHead(model.model.embed_tokens)  # nn.Embedding

    layer:   nn.Linear or nn.Embedding with weight (V, D).
    softcap: as in `linear_logprobs`. backend: the default for every call.

    Sharding: make it a submodule of the model, in place of the layer, and call it inside the model's forward. Then
    `fully_shard` (on it, or on the model around it) and ZeRO-3 gather its parameters as they do for any layer. With a
    `MixedPrecisionPolicy`, pass `cast_forward_inputs=False`: the per-token inputs must stay float32.

    Raises TypeError where `layer` is of another type.
    """

    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Embedding, *, softcap: float | None = None, backend: str = "auto"):
        super().__init__()
        if not isinstance(layer, (nn.Linear, nn.Embedding)):
            raise TypeError(f"layer: must be a torch.nn.Linear or torch.nn.Embedding; got {type(layer).__name__}")
        self.weight = layer.weight
        self.register_parameter("bias", getattr(layer, "bias", None))
        self.softcap = softcap
        self.backend = backend

    @overload
    def forward(self, hidden: Tensor, targets: Tensor, objectives: None = None, **options: Any) -> LogprobsOutput: ...
    @overload
    def forward(
        self, hidden: Tensor, targets: Tensor, objectives: Objective | Sequence[Objective], **options: Any
    ) -> PolicyLossOutput: ...
    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        objectives: Objective | Sequence[Objective] | None = None,
        **options: Any,
    ) -> LogprobsOutput | PolicyLossOutput:
        """`fused_policy_loss` if `objectives` are given, else `linear_logprobs`. They define `options`.

        hidden: (N, D), in the dtype of the weight. targets: (N,) int64 or int32.
        """
        shared = {"bias": self.bias, "softcap": self.softcap, "backend": self.backend, **options}
        if objectives is None:
            return linear_logprobs(hidden, self.weight, targets, **shared)
        return fused_policy_loss(hidden, self.weight, targets, objectives, **shared)

    def extra_repr(self) -> str:
        return f"vocabulary={self.weight.shape[0]}, width={self.weight.shape[1]}, softcap={self.softcap}"
