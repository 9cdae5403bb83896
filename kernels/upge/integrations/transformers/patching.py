"""`patch(model)`: the forward of a model of transformers computes its loss from labels without logits.

A patched model runs its own forward, so every architecture keeps its router losses, its type of output and its keyword
arguments. Only the head's place is taken, for the time of the call: see `hidden_logits`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from ...checks import check_objectives
from ...objective import Objective
from ...outputs import PolicyLossOutput
from ...presets import SFT
from .hidden_logits import Call, HeadStandIn, HiddenLogits, causal_lm_loss, linear_layer

Model = TypeVar("Model", bound=nn.Module)

SETTINGS = "_upge_settings"
DEFAULT = SFT()


def patch(
    model: Model,
    *,
    objectives: Objective | Sequence[Objective] = DEFAULT,
    temperature: float = 1.0,
    logits_in_eval: bool = False,
) -> Model:
    """Make a causal language model of transformers compute its loss from `labels` without storing logits.

        model = upge.integrations.transformers.patch(AutoModelForCausalLM.from_pretrained(...))
        Trainer(model=model, ...).train()

    model:          a PreTrainedModel with a linear head, or a PeftModel around one. Patch it before it is wrapped
                    (DistributedDataParallel, DeepSpeed), and before or after PEFT and `fully_shard`.
    objectives:     an `upge.Objective` or a list of them, as in `upge.fused_policy_loss`. The default, `upge.SFT()`, is
                    the loss that the model computes itself.
    temperature:    of the softmax, positive. With another than 1 SFT has another loss, too.
    logits_in_eval: in eval mode calls with labels go to the model's own forward, which gives logits and its own loss. A
                    Trainer with `compute_metrics` needs that. Otherwise they are fused too, and `eval_loss` needs no
                    logits.

    A call without labels (`generate`) goes to the model's own forward. A call with labels returns the model's own type
    of output, with `loss` set and `logits` None. As in transformers, labels (B, T) are token ids, each predicted from
    the position before, -100 where a token does not count; the loss is the mean over tokens, or their sum divided by
    `num_items_in_batch`. `shift_labels` are labels that stand at the predicting position already. What the model's
    forward adds to its loss (the router's loss of a mixture of experts) is added.

    The loss of other objectives, and its numbers:

        out = model(ids, labels=labels, upge={"advantages": A, "old_logprobs": old, "entropy_coef": 0.01})
        out.loss.backward()
        out.upge.logprobs, out.upge.ratio  # an upge.PolicyLossOutput

    The dict holds arguments of `upge.fused_policy_loss`; `objectives` and `temperature` in it replace those of the
    patch. Arguments per token and numbers are (B, T) and stand where `labels` has their token: position t is about
    token t, and position 0, which nothing predicts, does not count. Float arguments per token must be float32.
    `weights` are global already, so `num_items_in_batch` is not read beside them.

    Patching a patched model replaces its settings. Returns the model. Only one thread at a time may call it.

    Raises TypeError or ValueError for an argument or a model that is not supported. The first call with labels raises
    NotImplementedError where the model's forward does more to its logits than to scale and soft-cap them.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not isinstance(base, PreTrainedModel):
        hint = ": patch the model inside, before it is wrapped" if hasattr(base, "module") else ""
        raise TypeError(f"model: must be a transformers.PreTrainedModel or PeftModel; got {type(base).__name__}{hint}")
    check_objectives(objectives)
    if isinstance(temperature, bool) or not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
        raise ValueError(f"temperature: must be a positive float; got {temperature!r}")
    if not isinstance(logits_in_eval, bool):
        raise TypeError(f"logits_in_eval: must be True or False; got {logits_in_eval!r}")
    settings = Settings(objectives, float(temperature), logits_in_eval, _find_head(base))
    if SETTINGS not in vars(base):
        _replace_forward(base)
    setattr(base, SETTINGS, settings)
    return model


@dataclass(frozen=True)
class Settings:
    """What `patch` was given, and the name of the head in the model."""

    objectives: Objective | Sequence[Objective]
    temperature: float
    logits_in_eval: bool
    head: str


def _find_head(model: Any) -> str:
    """The dotted name of the module that makes the logits."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: must be a causal language model; {name} is an encoder and a decoder")
    if model.loss_function not in (ForCausalLMLoss, causal_lm_loss):
        raise ValueError(
            f"model: {name} has another loss_function than transformers' next-token loss: {model.loss_function!r}"
        )
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"model: {name} has no head: its get_output_embeddings() is None")
    linear_layer(head)
    paths: list[str] = [path for path, module in model.named_modules() if module is head]
    if not paths:
        raise ValueError(f"model: the head of {name} is none of its modules")
    return paths[0]


def _replace_forward(model: Any) -> None:
    """Give this one model a class with a fused forward. A hook of accelerate stays around it."""
    hook = vars(model).get("_hf_hook")
    own = vars(model).get("forward" if hook is None else "_old_forward")
    if own is not None and getattr(own, "__func__", None) is not type(model).forward:
        raise ValueError(
            f"model: something has replaced the forward of this {type(model).__name__} (mixed precision of accelerate, "
            "Liger, TRL): patch the model before, or leave that off"
        )
    cls: Any = type(model)
    fused = _fused_class(cls)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module, remove_hook_from_module

        remove_hook_from_module(model)
    vars(model).pop("forward", None)
    model.__class__ = fused
    model.loss_function = causal_lm_loss
    if hook is not None:
        add_hook_to_module(model, hook)


@functools.cache
def _fused_class(cls: Any) -> Any:
    """A subclass with the same name, so that saved configs and Trainer take one for the other.

    A class, and not an attribute of the instance, so that copies (of DataParallel, say) call themselves.
    """
    signature = inspect.signature(cls.forward)
    names = list(signature.parameters)[1:]
    if "labels" not in names:
        raise ValueError(f"model: the forward of {cls.__name__} takes no labels")
    position = names.index("labels")

    def forward(self: Any, *args: Any, upge: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        labels = args[position] if len(args) > position else kwargs.get("labels")
        return _forward(self, cls.forward, labels, upge, args, kwargs)

    # Trainer reads the signature. functools.wraps would set __wrapped__, which accelerate takes off again.
    forward.__signature__ = _with_upge(signature)  # type: ignore[attr-defined]
    forward.__doc__ = cls.forward.__doc__
    same = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}

    def reduce(self: Any, protocol: Any) -> Any:
        return _unpickled, (cls,), vars(self)

    return type(cls.__name__, (cls,), same | {"forward": forward, "__reduce_ex__": reduce})


def _unpickled(cls: Any) -> Any:
    """An empty model of the fused class of `cls`, which pickle cannot find by its name."""
    fused = _fused_class(cls)
    return fused.__new__(fused)


def _with_upge(signature: inspect.Signature) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    ends_with_kwargs = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    own = inspect.Parameter("upge", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters.insert(len(parameters) - ends_with_kwargs, own)
    return signature.replace(parameters=parameters)


def _forward(
    model: Any, own: Callable[..., Any], labels: Any, arguments: dict[str, Any] | None, args: Any, kwargs: Any
) -> Any:
    settings: Settings | None = vars(model).get(SETTINGS)
    if arguments is not None and not isinstance(arguments, Mapping):
        raise TypeError(f"upge: must be a dict of arguments of fused_policy_loss; got {type(arguments).__name__}")
    if labels is not None and not isinstance(labels, Tensor):
        raise TypeError(f"labels: must be a tensor; got {type(labels).__name__}")
    if arguments is not None and (settings is None or labels is None):
        raise ValueError("upge: needs a patched model and labels=, which say which tokens count")
    if settings is None or labels is None or (settings.logits_in_eval and not model.training and arguments is None):
        return own(model, *args, **kwargs)
    as_tuple = kwargs.pop("return_dict", None) is False
    given = {"objectives": settings.objectives, "temperature": settings.temperature} | (arguments or {})
    call = Call(type(model).__name__, given)
    with _in_place_of_head(model, settings.head, call):
        output = own(model, *args, **kwargs)
    if call.numbers is None or output.loss is None or not isinstance(output.logits, HiddenLogits):
        raise NotImplementedError(
            f"the forward of {call.model} does not take its loss from self.loss_function(logits, labels, ...), so that "
            "loss cannot be fused"
        )
    values = {name: value for name, value in output.items() if name != "logits"}
    kind: Any = type(output)
    if arguments is not None:
        kind, values["upge"] = _with_numbers(kind), call.numbers
    output = kind(**values)
    return output.to_tuple() if as_tuple else output


@functools.cache
def _with_numbers(kind: Any) -> Any:
    """The model's type of output with a field `upge`: DDP and FSDP2 take outputs apart by their fields."""
    extra = [("upge", PolicyLossOutput | None, field(default=None))]
    return make_dataclass(kind.__name__, extra, bases=(kind,), namespace={"__module__": kind.__module__})


@contextmanager
def _in_place_of_head(model: nn.Module, path: str, call: Call) -> Iterator[None]:
    """Within the block, `self.lm_head` is the stand-in to the code of the model. The module stays where it is."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    vars(owner)[name] = HeadStandIn(owner.get_submodule(name), call)
    try:
        yield
    finally:
        del vars(owner)[name]
