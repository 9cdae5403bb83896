"""prime-rl's fused head: log-probabilities and entropies by `upge.linear_logprobs`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..api import linear_logprobs
from .peer import Peer, replace

PEER = Peer(
    package="prime-rl",
    module="prime_rl.trainer.models.layers.lm_head",
    functions={"FusedOutputLinear.forward": ("self", "hidden_states", "labels", "temperature")},
    supported="0.5.0",
    get="see https://github.com/PrimeIntellect-ai/prime-rl",
)


def install() -> None:
    """Replace `FusedOutputLinear.forward` of prime-rl, in this process. A second call does nothing.

    prime-rl makes this head where `fused_lm_head_token_chunk_size` is a number. Models with capped logits (Gemma) have
    another one, which stays as it is, and so does the head without a chunk size.

    Raises ModuleNotFoundError where prime-rl is not installed, and ImportError where its version differs in that class.
    """
    replace(PEER.load().FusedOutputLinear, "forward", _make_forward)


def _make_forward(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def forward(
        self: Any, hidden_states: Tensor, labels: Tensor | None = None, temperature: Tensor | None = None, **more: Any
    ) -> Any:
        if labels is None or temperature is None or any(value is not None for value in more.values()):
            # Their own message for what is missing, and what we don't have: the replay of sampling masks.
            return theirs(self, hidden_states, labels, temperature, **more)
        out = linear_logprobs(hidden_states, self.weight, labels, temperature=temperature, entropy=True)
        return {"logprobs": out.logprobs, "entropy": out.entropy}

    return forward
