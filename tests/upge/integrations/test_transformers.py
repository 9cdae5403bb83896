"""upge.integrations.transformers: loss, gradients and numbers of patched models, against the models' own logits."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
import upge
from hf_models import ARCHITECTURES, SMALL, assert_same, batch, gradients, make
from transformers.modeling_outputs import CausalLMOutputWithPast
from upge.integrations.transformers import patch


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_loss_and_gradients_are_the_models_own(case):
    name = case.split(",")[0]
    own = make(name, **ARCHITECTURES[case])
    model = patch(copy.deepcopy(own))
    for extra in ({}, {"num_items_in_batch": torch.tensor(29)}, {"num_items_in_batch": 29}):
        outputs = []
        for each in (own, model):
            each.zero_grad()
            outputs.append(each(**batch(), **extra))
            outputs[-1].loss.backward()
        want, got = outputs
        # The model's own loss is a sum of N float32 terms; ours is summed in float64.
        torch.testing.assert_close(got.loss, want.loss, rtol=3e-7, atol=0)
        assert_same(gradients(model), gradients(own))
        assert type(got) is type(want)
        assert got.logits is None
        assert getattr(got, "aux_loss", None) == getattr(want, "aux_loss", None)
    # Without labels the model is as it was.
    ids = batch()["input_ids"]
    assert torch.equal(model(ids).logits, own(ids).logits)
    assert torch.equal(
        model.generate(ids, max_new_tokens=3, do_sample=False), own.generate(ids, max_new_tokens=3, do_sample=False)
    )


def test_a_vision_language_model():
    """Its head is the language model's, its settings those of a part of its config."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.Gemma3Config(
        text_config=SMALL | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
        vision_config=vision | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=2,
    )
    torch.manual_seed(0)
    own = transformers.Gemma3ForConditionalGeneration(config).eval()
    model = patch(copy.deepcopy(own))
    for each in (own, model):
        each(**batch()).loss.backward()
    assert model(**batch()).logits is None
    assert_same(gradients(model), gradients(own))


def test_the_routers_loss_joins_the_models_loss_alone():
    model = patch(make("Mixtral", **ARCHITECTURES["Mixtral"]))
    out = model(**batch(), upge={})
    torch.testing.assert_close(out.loss - out.upge.loss, 0.5 * out.aux_loss, rtol=1e-5, atol=0)


def test_labels_may_be_shifted_already():
    own = make()
    model = patch(copy.deepcopy(own))
    inputs = batch()
    shifted = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    want = own(**inputs).loss
    torch.testing.assert_close(model(**inputs, shift_labels=shifted).loss, want, rtol=3e-7, atol=0)
    advantages = torch.randn(shifted.shape)
    settings = {"objectives": upge.REINFORCE()}
    plain = model(**inputs, upge={"advantages": advantages} | settings)
    moved = torch.nn.functional.pad(advantages[:, 1:], (0, 1))
    ahead = model(**inputs, shift_labels=shifted, upge={"advantages": moved} | settings)
    assert ahead.loss == plain.loss
    assert torch.equal(ahead.upge.logprobs[:, :-1], plain.upge.logprobs[:, 1:])


def test_the_policy_loss_equals_its_formula():
    """GRPO rows and SFT rows with an entropy bonus and a KL term, against float64 from the model's own logits."""
    own = make("Gemma2", **ARCHITECTURES["Gemma2"])
    model = patch(copy.deepcopy(own), objectives=[upge.SFT(), upge.GRPO()], temperature=1.3)
    inputs = batch(rows=4)
    labels = inputs["labels"]
    g = torch.Generator().manual_seed(2)
    advantages = torch.randn(labels.shape, generator=g)
    weights = torch.rand(labels.shape, generator=g) / 20
    is_rl = torch.tensor([0, 1, 1, 0])[:, None].expand(labels.shape)
    keep = torch.rand(labels.shape, generator=g) < 0.8

    z = own(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].double() / 1.3
    logp = z.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    counted = (labels[:, 1:] != -100) & keep[:, 1:]
    l = logp.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    noise = 0.3 * torch.randn(2, *labels.shape, generator=g)
    old, ref = (torch.nn.functional.pad(l.detach().float(), (1, 0)) + n for n in noise)
    A = advantages[:, 1:].double()
    ratio = (l - old[:, 1:]).exp()
    surrogate = torch.where(is_rl[:, 1:] == 1, -torch.min(ratio * A, ratio.clamp(0.8, 1.2) * A), -l)
    d = ref[:, 1:] - l
    per_token = surrogate - 0.05 * entropy + 0.1 * (d.exp() - d - 1)
    want = (weights[:, 1:] * per_token)[counted].sum()
    want.backward()

    arguments = {
        "advantages": advantages,
        "weights": weights,
        "objective_index": is_rl,
        "old_logprobs": old,
        "ref_logprobs": ref,
        "mask": keep,
        "entropy_coef": 0.05,
        "kl_coef": 0.1,
    }
    # The weights are global, so the number of items does not count.
    out = model(**inputs, upge=arguments, num_items_in_batch=3)
    out.loss.backward()
    torch.testing.assert_close(out.loss.double(), want, rtol=1e-6, atol=0)
    assert_same(gradients(model), gradients(own))
    assert isinstance(out, CausalLMOutputWithPast)
    assert out.logits is None
    assert all(values.shape == labels.shape for values in out.upge[1:])
    ratio = torch.where(is_rl[:, 1:] == 1, ratio, 1.0)
    for got, wanted in ((out.upge.logprobs, l), (out.upge.entropy, entropy), (out.upge.ratio, ratio)):
        torch.testing.assert_close(got[:, 1:][counted].double(), wanted[counted], rtol=5e-6, atol=5e-6)
        assert not got[:, 0].any()
    assert not out.upge.evaluated[:, 0].any()
    assert torch.equal(out.upge.evaluated[:, 1:], counted)


def test_numbers_come_only_where_they_are_asked_for_and_survive_wrappers():
    model = patch(make())
    inputs = batch()
    assert not hasattr(model(**inputs), "upge")
    out = model(**inputs, upge={})
    leaves, structure = torch.utils._pytree.tree_flatten(out)  # DDP and FSDP2 do so
    again = torch.utils._pytree.tree_unflatten(leaves, structure)
    assert torch.equal(again.upge.logprobs, out.upge.logprobs)
    loss, *_ = model(**inputs, return_dict=False)
    assert loss == out.loss == out.upge.loss
    assert not out.upge.loss.requires_grad


def test_every_argument_per_token_moves_with_its_token():
    """Also columns for functions of the user's own, and a temperature."""
    model = patch(make())
    inputs = batch()
    g = torch.Generator().manual_seed(4)
    column, temperature = torch.rand(2, *inputs["labels"].shape, generator=g) + 0.5
    mine = upge.Objective.from_function(lambda logprobs, tokens: -tokens.discount * logprobs)
    own = upge.Objective.from_function(lambda logprobs, tokens: -tokens.advantages * logprobs)
    by_column = model(**inputs, upge={"objectives": mine, "columns": {"discount": column}, "temperature": temperature})
    by_advantage = model(**inputs, upge={"objectives": own, "advantages": column, "temperature": temperature})
    assert by_column.loss == by_advantage.loss
    logits = make()(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    logp = (logits / temperature[:, 1:, None]).log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    want = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(by_column.upge.logprobs[:, 1:], want.where(labels != -100, 0.0), rtol=2e-6, atol=2e-6)


def test_patching_again_replaces_the_settings():
    model = patch(make(), temperature=2.0)
    cls = type(model)
    hot = model(**batch()).loss
    patch(model)
    assert type(model) is cls
    assert str(cls) == str(transformers.Qwen2ForCausalLM)  # under which transformers keeps what it records of outputs
    torch.testing.assert_close(model(**batch()).loss, make()(**batch()).loss, rtol=3e-7, atol=0)
    assert model(**batch(), upge={"temperature": 2.0}).loss == hot


def test_copies_and_new_models_of_its_class():
    model = patch(make())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(2)
    assert twin(**batch()).loss != model(**batch()).loss
    assert twin(**batch()).logits is None
    replica = model._replicate_for_data_parallel()  # DataParallel then gives it modules of its own
    replica._modules = twin._modules
    assert replica(**batch()).loss == twin(**batch()).loss
    fresh = type(model)(model.config)
    assert fresh(**batch()).logits is not None  # not patched


def test_gradient_checkpointing():
    own = make()
    model = patch(copy.deepcopy(own))
    for each in (own, model):
        each.gradient_checkpointing_enable()
        each.train()
        each(**batch()).loss.backward()
    assert_same(gradients(model), gradients(own))


def test_compiled():
    """In one graph, the base model and the loss."""
    model = patch(make("Gemma2", **ARCHITECTURES["Gemma2"]))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inputs = batch()
    assert compiled(**inputs).loss == model(**inputs).loss
    assert compiled(**inputs).logits is None
