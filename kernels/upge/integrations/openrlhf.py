"""OpenRLHF's `Actor` without logits: its log-probabilities and entropies by `upge.linear_logprobs`.

The actor's own forward runs, with its packing, ring attention, masks and gathering. Only the model's head returns
something else: instead of V logits of each token, the log-probability of the next token and, where it is asked for,
the entropy. They are computed inside the head's call, so that ZeRO-3 gathers the weight around it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..api import linear_logprobs
from .peer import Peer, replace

PEER = Peer(
    package="openrlhf",
    module="openrlhf.models.actor",
    functions={
        "Actor.forward": ("self", "sequences", "action_mask", "attention_mask", "return_output"),
        "unpad_and_slice_tensor": ("sequences", "attention_mask", "ring_attn_group"),
        "compute_entropy": ("logits",),
        "log_probs_from_logits": ("logits", "labels"),
    },
    supported="0.11.2",
    get="pip install openrlhf==0.11.2",
)


def install() -> None:
    """Replace the forward of OpenRLHF's `Actor`, in this process. A second call does nothing.

    It acts when `openrlhf.models.actor` is imported, which it doesn't do itself: a Ray worker that only samples with
    vLLM keeps out DeepSpeed. PPO and its variants run in Ray's workers, so name it as their set-up function:

        ray job submit --runtime-env-json='{"worker_process_setup_hook": "upge.integrations.openrlhf.install"}' ...

    Calls that ask for log-probabilities (`action_mask` or `return_logprobs`) go through upge, and `output.logits` is
    None there. Other calls return logits, as before.

    The head must be a `torch.nn.Linear` whose logits the model returns as they are. Others are refused when the actor
    is called: TypeError for a head that LoRA, tensor parallelism or quantization has replaced, and NotImplementedError
    for models that cap or scale their logits (Gemma 2, Granite, Cohere).

    Raises ModuleNotFoundError where OpenRLHF is not installed, and ImportError where its version differs in the
    functions that are used; the latter when `openrlhf.models.actor` is imported.
    """
    PEER.when_imported(_replace)


def _replace(module: ModuleType) -> None:
    replace(module.Actor, "forward", _make_forward)
    replace(module, "unpad_and_slice_tensor", _make_unpad)
    replace(module, "compute_entropy", _make_compute_entropy)
    replace(module, "log_probs_from_logits", _make_log_probs)


@dataclass
class _Call:
    """One forward of an actor.

    labels:      (B, T) the next token of each position, in the layout of the model's input.
    temperature: that of the actor.
    entropy:     whether entropies are asked for.
    values:      (B, T, 1 or 2) float32, what the head returned: log-probabilities and entropies.
    """

    labels: Tensor
    temperature: float
    entropy: bool
    values: Tensor | None = None

    def run_head(self, head: nn.Linear, hidden: Tensor) -> Tensor:
        out = linear_logprobs(
            hidden, head.weight, self.labels, bias=head.bias, temperature=self.temperature, entropy=self.entropy
        )
        self.values = torch.stack([value for value in (out.logprobs, out.entropy) if value is not None], dim=-1)
        return self.values

    def read(self, logits: Tensor, column: int) -> Tensor:
        """A column of what the model returned, if that is what the head returned."""
        if self.values is None or logits.data_ptr() != self.values.data_ptr():
            raise NotImplementedError(
                "upge.integrations.openrlhf: this model does not return its head's logits as they are (it caps or "
                "scales them); run it without upge.integrations.openrlhf.install()"
            )
        return logits[..., column]


_current: ContextVar[_Call | None] = ContextVar("_current", default=None)


def _make_forward(theirs: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        if given.get("action_mask") is None and not given.get("return_logprobs", False):
            return theirs(self, *args, **kwargs)
        head: Any = _head(self.model)
        labels = torch.roll(given["sequences"], shifts=-1, dims=1)
        call = _Call(labels, self.temperature, given.get("return_entropy", False))
        token = _current.set(call)
        head.forward = functools.partial(call.run_head, head)
        self.temperature = 1.0  # the head divides by the temperature
        try:
            result = theirs(self, *args, **kwargs)
        finally:
            self.temperature = call.temperature
            del head.forward
            _current.reset(token)
        if given.get("return_output", False):
            result[1]["logits"] = None
        return result

    return forward


def _make_unpad(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def unpad_and_slice_tensor(*args: Any, **kwargs: Any) -> Any:
        result = theirs(*args, **kwargs)
        if (call := _current.get()) is not None:
            call.labels = result[2]
        return result

    return unpad_and_slice_tensor


def _make_compute_entropy(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def compute_entropy(logits: Tensor) -> Any:
        call = _current.get()
        return theirs(logits) if call is None else call.read(logits, 1)

    return compute_entropy


def _make_log_probs(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def log_probs_from_logits(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = _current.get()
        return theirs(logits, labels, *args, **kwargs) if call is None else call.read(logits, 0)

    return log_probs_from_logits


def _head(model: Any) -> nn.Linear:
    head = getattr(model, "module", model).get_output_embeddings()  # `module`: what a DeepSpeed engine holds
    if type(head) is not nn.Linear:
        raise TypeError(
            f"upge.integrations.openrlhf: the model's head must be a torch.nn.Linear; got {type(head).__name__}"
        )
    return head
