"""verl with `use_fused_kernels`: log-probabilities and entropies by `upge.linear_logprobs`.

verl builds its model configuration in every worker and imports the module that `external_lib` names there. So one
setting installs the integration in all of them:

    actor_rollout_ref.model.external_lib=upge.integrations.verl_external_lib
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..api import linear_logprobs
from .peer import Peer, replace

PEER = Peer(
    package="verl",
    module="verl.utils.experimental.torch_functional",
    functions={"FusedLinearForPPO.forward": ("self", "hidden_states", "vocab_weights", "input_ids", "temperature")},
    supported="0.9.1",
    get="pip install verl==0.9.1",
)


def install() -> None:
    """Replace the head of verl's fused forward, in this process. A second call does nothing.

    It is `verl.utils.experimental.torch_functional.FusedLinearForPPO`, which verl calls for all its models with
    `use_fused_kernels: true` and `fused_kernel_options.impl_backend: torch` (the default) or `liger`. The backend
    `triton`, and with it Megatron, uses another function and stays as it is.

    Raises ModuleNotFoundError where verl is not installed, and ImportError where its version differs in that class.
    """
    replace(PEER.load().FusedLinearForPPO, "forward", lambda theirs: _forward)


def _forward(
    self: Any, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities in float32 and entropies in the dtype of the hidden states, as in verl."""
    out = linear_logprobs(hidden_states, vocab_weights, input_ids, temperature=temperature, entropy=True)
    assert out.entropy is not None
    return out.logprobs, out.entropy.to(hidden_states.dtype)
