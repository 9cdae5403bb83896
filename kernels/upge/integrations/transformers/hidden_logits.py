"""Stand-ins for a model's head and for its logits, from which its loss function computes the fused loss.

The stand-in for the head gives `HiddenLogits`: they keep the hidden states, note the scale and the soft-cap that the
model's forward applies to its logits, and refuse anything else. So no list of architectures is needed, and none gets
another loss than its own. The loss function then calls the real head as a module, still within the model's forward, so
that the hooks of FSDP2, ZeRO-3, PEFT and accelerate run and its weight is there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from ...api import fused_policy_loss
from ...checks import check_unrounded
from ...outputs import PolicyLossOutput

FROM_THE_MODEL = ("hidden", "weight", "targets", "bias", "softcap", "logit_scale", "ignore_index", "group")
ARGUMENTS = [name for name in inspect.signature(fused_policy_loss).parameters if name not in FROM_THE_MODEL]


@dataclass
class Call:
    """A call of a patched model with labels: the model's name, arguments of `fused_policy_loss`, and what it gave."""

    model: str
    arguments: dict[str, Any]
    numbers: PolicyLossOutput | None = None


class HeadStandIn:
    """What the model's forward finds in the place of its head. Anything but a call goes to the head."""

    def __init__(self, head: nn.Module, call: Call):
        self._head = head
        self._call = call

    def __call__(self, hidden: Tensor) -> HiddenLogits:
        return HiddenLogits(hidden, self._head, self._call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)


@dataclass(frozen=True, eq=False)
class HiddenLogits:
    """The logits `scale` head(hidden), or `scale` tanh(`inner` head(hidden)) where there is an `inner`.

    A scale is (factor, divisor), so that x / 30 * 30 is x.
    """

    hidden: Tensor
    head: nn.Module
    call: Call
    scale: tuple[float, float] = (1.0, 1.0)
    inner: tuple[float, float] | None = None

    def __mul__(self, factor: Any) -> HiddenLogits:
        return replace(self, scale=(self.scale[0] * self._number("multiplied by", factor), self.scale[1]))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> HiddenLogits:
        return replace(self, scale=(self.scale[0], self.scale[1] * self._number("divided by", divisor)))

    def tanh(self) -> HiddenLogits:
        if self.inner is not None:
            self.refuse("tanh, twice")
        return replace(self, scale=(1.0, 1.0), inner=self.scale)

    def head_options(self) -> dict[str, Any]:
        """The logits as arguments of `fused_policy_loss`: softcap * tanh(logit_scale * head(hidden) / softcap)."""
        factor, divisor = self.scale
        if self.inner is None:
            return {"logit_scale": factor / divisor}
        return {"softcap": factor / divisor, "logit_scale": factor * self.inner[0] / (divisor * self.inner[1])}

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        logits = next(value for value in (*args, *(kwargs or {}).values()) if isinstance(value, cls))
        if function is torch.tanh and not kwargs:
            return logits.tanh()
        logits.refuse(getattr(function, "__name__", repr(function)))

    def __getattr__(self, name: str) -> Any:
        if name in ("float", "to", "contiguous"):  # the fused logits are float32 in any case
            return lambda *args, **kwargs: self
        if name.startswith("__"):
            raise AttributeError(name)
        self.refuse(f".{name}")

    def _number(self, what: str, value: Any) -> float:
        if isinstance(value, (int, float)) and value != 0 and math.isfinite(value):
            return value
        self.refuse(f"{what} {value!r}")

    def refuse(self, what: str) -> NoReturn:
        raise NotImplementedError(
            f"the forward of {self.call.model} does something to its logits that upge does not know ({what}), so the "
            "fused loss would be another. Known are a scale, and a soft-cap: cap * tanh(logits / cap)"
        )


def _refused(operator: str) -> Callable[..., NoReturn]:
    return lambda logits, *others: logits.refuse(operator)


# Python looks operators up on the class, past __getattr__.
for _name in ("add", "radd", "sub", "rsub", "neg", "pow", "rtruediv", "matmul", "getitem", "setitem", "lt", "gt"):
    setattr(HiddenLogits, f"__{_name}__", _refused(f"__{_name}__"))


def causal_lm_loss(logits: Any, labels: Tensor, vocab_size: int, *args: Any, **kwargs: Any) -> Tensor:
    """The loss function of a patched model. Where the logits are real, it is the one of transformers."""
    function: Callable[..., Tensor] = ForCausalLMLoss
    if isinstance(logits, HiddenLogits):
        function = _fused_loss
    return function(logits, labels, vocab_size, *args, **kwargs)


def _fused_loss(
    logits: HiddenLogits,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """The arguments of ForCausalLMLoss; like it, this one leaves other keywords of a model's forward unread."""
    call = logits.call
    if call.numbers is not None:
        logits.refuse("a second loss")
    given = labels if shift_labels is None else shift_labels
    if given.shape != logits.hidden.shape[:-1]:
        expected = tuple(logits.hidden.shape[:-1])
        raise ValueError(f"labels: must be one per hidden state, {expected}; got {tuple(given.shape)}")
    options = checked_options(call.arguments, given)
    if num_items_in_batch is not None and options.get("weights") is None:
        count = torch.as_tensor(num_items_in_batch, dtype=torch.float32)
        if count.numel() != 1:
            raise ValueError(f"num_items_in_batch: must be one number; got {num_items_in_batch!r}")
        options["weights"] = (1 / count).reshape(()).expand(given.shape)
    if shift_labels is None:
        given = F.pad(given[..., 1:], (0, 1), value=ignore_index)
        options = _map(options, _to_predicting_position)
    layer = linear_layer(logits.head)

    def fused(hidden: Tensor) -> PolicyLossOutput:
        """The forward of the layer. A hook may have moved hidden to the layer's device."""
        return fused_policy_loss(
            hidden,
            layer.weight,
            given.to(hidden.device),
            bias=layer.bias,
            ignore_index=ignore_index,
            **logits.head_options(),
            **_map(options, lambda value: value.to(hidden.device)),
        )

    out: PolicyLossOutput = _call_with(logits.head, layer, fused, logits.hidden)
    numbers = out[1:] if shift_labels is not None else map(_to_token, out[1:])
    # The model's forward may add to its loss in place.
    call.numbers = PolicyLossOutput(out.loss.detach().clone(), *numbers)
    return out.loss


def checked_options(arguments: Mapping[str, Any], labels: Tensor) -> dict[str, Any]:
    """The arguments that a call has for `fused_policy_loss`, those per token being of the shape of labels."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        if value.shape != labels.shape:
            raise ValueError(f"{name}: must have the shape of labels, {tuple(labels.shape)}; got {tuple(value.shape)}")
        check_unrounded(name, value)
        return value

    for name in arguments:
        if name not in ARGUMENTS:
            raise TypeError(f"upge: no argument {name!r}; it may hold {', '.join(ARGUMENTS)}")
    options = {name: check(f"upge[{name!r}]", value) for name, value in arguments.items()}
    if options.get("columns") is not None:
        if not isinstance(options["columns"], Mapping):
            raise TypeError(f"upge['columns']: must be a dict; got {type(options['columns']).__name__}")
        columns = options["columns"].items()
        options["columns"] = {name: check(f"upge['columns'][{name!r}]", value) for name, value in columns}
    return options


def _map(options: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The options with `change` applied to every tensor per token."""
    changed: dict[str, Any] = {
        name: change(value) if isinstance(value, Tensor) and value.dim() else value for name, value in options.items()
    }
    if changed.get("columns") is not None:
        changed["columns"] = _map(changed["columns"], change)
    return changed


def _to_predicting_position(values: Tensor) -> Tensor:
    """From the position of a token to the one before, which predicts it, with 0 (False) at the end."""
    return F.pad(values[..., 1:], (0, 1))


def _to_token(values: Tensor) -> Tensor:
    """The way back, with 0 (False) at the start."""
    return F.pad(values[..., :-1], (1, 0))


def linear_layer(head: nn.Module) -> nn.Linear:
    """The layer whose weight and bias make the logits: the head, or the copy that PEFT trains for it."""
    layer: Any = head
    if hasattr(head, "modules_to_save") and hasattr(head, "original_module"):
        peft: Any = head
        trained = not peft.disable_adapters and peft.active_adapters
        layer = peft.modules_to_save[peft.active_adapters[0]] if trained else peft.original_module
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        return layer
    hint = ""
    if hasattr(layer, "base_layer"):
        hint = ". An adapter on the head is not supported: leave it out, or train the head by modules_to_save"
    raise TypeError(f"model: its head must be a plain torch.nn.Linear; got {type(layer).__name__}{hint}")


def _call_with(head: nn.Module, layer: nn.Linear, function: Callable[[Tensor], Any], hidden: Tensor) -> Any:
    """Call the head, with all hooks, but with `function` as the forward of its linear layer."""
    # Under this name accelerate keeps the forward around which it has put a hook.
    name = "_old_forward" if "_old_forward" in vars(layer) else "forward"
    before = vars(layer).get(name)
    vars(layer)[name] = function
    try:
        return head(hidden)
    finally:
        del vars(layer)[name]
        if before is not None:
            vars(layer)[name] = before
