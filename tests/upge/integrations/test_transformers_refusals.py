"""What a forward may do to its logits, and which models and arguments are refused, with what words."""

from __future__ import annotations

import copy
import importlib
import pickle
import re
import sys
from collections.abc import Callable

import pytest
import torch
import transformers
import upge
from hf_models import SMALL, V, assert_same, batch, gradients, make
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from upge.integrations.transformers import patch


def with_forward(change: Callable[[Tensor], Tensor], losses: int = 1) -> nn.Module:
    """A Qwen2 whose forward does something to its logits, and takes the sum of some losses."""

    class Odd(transformers.Qwen2ForCausalLM):
        def forward(self, input_ids, labels=None, **kwargs):
            logits = change(self.lm_head(self.model(input_ids).last_hidden_state))
            loss = sum(self.loss_function(logits, labels, V, **kwargs) for _ in range(losses))
            return CausalLMOutputWithPast(loss=loss, logits=logits)

    torch.manual_seed(0)
    return Odd(transformers.Qwen2Config(**SMALL))


CHANGES = {
    "__add__": lambda z: z + 1,
    "add": lambda z: torch.ones(V) + z,
    ".sigmoid": lambda z: z.sigmoid(),
    "softplus": lambda z: torch.nn.functional.softplus(z),
    "__getitem__": lambda z: z[..., : V - 1],
    "multiplied by tensor": lambda z: z * torch.ones(V),
    "tanh, twice": lambda z: z.tanh().tanh(),
    ".shape": lambda z: z.reshape(z.shape) if z.shape else z,
}


@pytest.mark.parametrize("what", CHANGES)
def test_unknown_logits_are_refused(what):
    model = patch(with_forward(CHANGES[what]))
    with pytest.raises(NotImplementedError, match=rf"forward of Odd .* does not know \({re.escape(what)}"):
        model(batch()["input_ids"], labels=batch()["labels"])


@pytest.mark.parametrize(("losses", "message"), [(0, "does not take its loss from"), (2, r"\(a second loss\)")])
def test_a_loss_of_another_kind_is_refused(losses, message):
    model = patch(with_forward(lambda z: z, losses))
    with pytest.raises(NotImplementedError, match=message):
        model(batch()["input_ids"], labels=batch()["labels"])


def test_scales_and_caps_in_any_spelling():
    for change in (
        lambda z: 2 * torch.tanh(z / 3).float() / 0.5,
        lambda z: (z.to(torch.float32) * 0.7).contiguous(),
        lambda z: z.tanh(),
    ):
        own = with_forward(change)
        model = patch(copy.deepcopy(own))
        inputs = {name: batch()[name] for name in ("input_ids", "labels")}
        for each in (own, model):
            each(**inputs).loss.backward()
        torch.testing.assert_close(model(**inputs).loss, own(**inputs).loss, rtol=3e-7, atol=0)
        assert_same(gradients(model), gradients(own))


def test_models_without_a_known_loss_are_refused():
    bart = transformers.BartForCausalLM(
        transformers.BartConfig(
            vocab_size=V, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8
        )
    )
    with pytest.raises(NotImplementedError, match=r"BartForCausalLM.*does not know \(\.view\)"):
        patch(bart)(batch()["input_ids"], labels=batch()["labels"])
    z_loss = make("Bamba", mamba_n_heads=8, mamba_d_head=8, attn_layer_indices=[1], z_loss_coefficient=0.1)
    with pytest.raises(NotImplementedError, match=r"BambaForCausalLM.*does not know \(\.logsumexp\)"):
        patch(z_loss)(**batch())
    with pytest.raises(TypeError, match=r"model: must be a transformers.PreTrainedModel.*got Linear"):
        patch(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"got DataParallel: patch the model inside, before it is wrapped"):
        patch(nn.DataParallel(make()))
    with pytest.raises(ValueError, match=r"model: Qwen2Model has"):
        patch(make().model)
    own_loss = make()
    own_loss.loss_function = lambda *a, **k: torch.zeros(())
    with pytest.raises(ValueError, match=r"model: Qwen2ForCausalLM has another loss_function"):
        patch(own_loss)
    replaced = make()
    replaced.forward = lambda *a, **k: None
    with pytest.raises(ValueError, match=r"model: something has replaced the forward of this Qwen2ForCausalLM"):
        patch(replaced)
    odd_head = make()
    odd_head.lm_head = nn.Sequential(odd_head.lm_head)
    with pytest.raises(TypeError, match=r"model: its head must be a plain torch.nn.Linear; got Sequential"):
        patch(odd_head)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"objectives: must be an upge.Objective.*got \[\]"):
        patch(make(), objectives=[])
    with pytest.raises(ValueError, match=r"temperature: must be a positive float; got 0"):
        patch(make(), temperature=0)
    model, inputs = patch(make()), batch()
    with pytest.raises(ValueError, match=r"upge: needs .* labels="):
        model(inputs["input_ids"], upge={})
    with pytest.raises(TypeError, match=r"upge: no argument 'advantage'; it may hold .*advantages"):
        model(**inputs, upge={"advantage": torch.zeros(3, 11)})
    with pytest.raises(ValueError, match=r"upge\['weights'\]: must have the shape of labels, \(3, 11\); got \(3, 1\)"):
        model(**inputs, upge={"weights": torch.zeros(3, 1)})
    with pytest.raises(TypeError, match=r"upge\['weights'\]: must be float32; got bfloat16.*cast_forward_inputs=False"):
        model(**inputs, upge={"weights": torch.zeros(3, 11, dtype=torch.bfloat16)})
    with pytest.raises(ValueError, match=r"labels: must be one per hidden state, \(3, 4\); got \(3, 11\)"):
        model(**inputs, logits_to_keep=4)
    with pytest.raises(ValueError, match=r"advantages.*REINFORCE needs"):
        model(**inputs, upge={"objectives": upge.REINFORCE()})
    # A refused call leaves no trace.
    torch.testing.assert_close(model(**inputs).loss, make()(**inputs).loss, rtol=3e-7, atol=0)
    assert "lm_head" not in vars(model)


def test_a_missing_package_or_a_moved_name_is_said(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("upge.integrations.transformers")]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as without:
        without.delattr("transformers.loss.loss_utils.ForCausalLMLoss")
        with pytest.raises(ImportError, match=rf"{transformers.__version__} differs.*5\.16 to 5\.19.*ForCausalLMLoss"):
            importlib.import_module("upge.integrations.transformers")
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "transformers'):
        importlib.import_module("upge.integrations.transformers")


def test_arguments_of_another_type():
    model = patch(make())
    ids = torch.arange(6).view(1, 6)
    for changes, message in (
        ({"upge": ["x"]}, "upge: must be a dict.*list"),
        ({"upge": {"columns": [ids]}}, r"upge\['columns'\]: must be a dict.*list"),
        ({"labels": ids.tolist()}, "labels: must be a tensor; got list"),
    ):
        with pytest.raises(TypeError, match=message):
            model(ids, **{"labels": ids} | changes)
    with pytest.raises(ValueError, match="num_items_in_batch: must be one number"):
        model(ids, labels=ids, num_items_in_batch=torch.tensor([3, 4]))
    with pytest.raises(TypeError, match="logits_in_eval: must be True or False; got 'no'"):
        patch(model, logits_in_eval="no")
    with pytest.raises(ValueError, match="temperature: must be a positive float; got True"):
        patch(model, temperature=True)


def test_a_patched_model_can_be_pickled():
    model = patch(make())
    ids = torch.arange(6).view(1, 6)
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(ids, labels=ids).loss, model(ids, labels=ids).loss)
    assert copied(ids, labels=ids).logits is None
    assert type(copied) is type(model)
