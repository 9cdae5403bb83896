"""upge.integrations.transformers against unpatched models of transformers, alone, in its Trainer, and with PEFT."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import upge
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
from transformers import Trainer, TrainingArguments  # noqa: E402
from transformers.modeling_outputs import CausalLMOutputWithPast  # noqa: E402
from upge.integrations.transformers import patch  # noqa: E402

V = 97
SMALL = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # so that the loss is far from that of a uniform distribution
}


def make(name: str = "Qwen2", **settings) -> nn.Module:
    """A tiny random model."""
    torch.manual_seed(0)
    cls = getattr(transformers, f"{name}ForCausalLM")
    return cls(cls.config_class(**SMALL | settings))


def batch(rows: int = 3, length: int = 11, seed: int = 1) -> dict[str, Tensor]:
    """Token ids, right padding, and labels of -100 on prompts and padding."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (rows, length), generator=g)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=g)
    attention_mask = (torch.arange(length) < lengths).long()
    labels = ids.masked_fill((attention_mask == 0) | (torch.arange(length) < 3), -100)
    return {"input_ids": ids, "attention_mask": attention_mask, "labels": labels}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], relative: float = 2e-5) -> None:
    """Equal tensor by tensor. A gradient that is zero but for rounding is compared with the norm of all."""
    assert found.keys() == wanted.keys()
    total = sum(w.double().square().sum() for w in wanted.values()) ** 0.5
    for name, want in wanted.items():
        error = (found[name] - want).norm()
        assert error <= relative * max(float(want.norm()), 1e-3 * float(total)), (name, float(error / want.norm()))


ARCHITECTURES = {
    "Qwen2": {},
    "Qwen2, tied": {"tie_word_embeddings": True},
    "Llama": {},
    "Qwen3": {},
    "Gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Gemma3, text": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Gemma3, no cap": {"query_pre_attn_scalar": 8},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Phi": {},  # its head has a bias
    "Mixtral": {"output_router_logits": True, "router_aux_loss_coef": 0.5, "num_local_experts": 4},
}


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


# --- in Trainer -------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """Rows of several lengths of loss: a mean over micro-batches is not the mean over tokens."""

    def __init__(self, rows: int):
        self.data = batch(rows, 12, seed=3)

    def __len__(self) -> int:
        return len(self.data["labels"])

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return {name: values[at] for name, values in self.data.items()}


def trained(model: nn.Module, folder: Path, **settings) -> Trainer:
    """Three updates of two micro-batches, and an evaluation."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 3,
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.5,
            "logging_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        | settings,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(12), eval_dataset=Rows(4))
    trainer.train()
    trainer.evaluate()
    return trainer


def logged(trainer: Trainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def test_trainer_learns_the_same(tmp_path, monkeypatch):
    own = make()
    model = patch(copy.deepcopy(own))
    want = trained(own, tmp_path)
    monkeypatch.setattr(nn.Linear, "forward", _no_logits(nn.Linear.forward))
    got = trained(model, tmp_path)
    assert got.model_accepts_loss_kwargs
    assert got.label_names == ["labels"]
    assert len(logged(got, "loss")) == 3
    # Trainer rounds what it logs to some digits.
    for name in ("loss", "grad_norm", "eval_loss"):
        assert logged(got, name) == pytest.approx(logged(want, name), rel=3e-7, abs=3e-7)
    for name, values in own.state_dict().items():  # which have changed by up to 4e-3
        torch.testing.assert_close(model.state_dict()[name], values, rtol=3e-7, atol=3e-7)


def _no_logits(forward: Callable) -> Callable:
    def linear(self, hidden):
        assert self.out_features != V, "logits were formed"
        return forward(self, hidden)

    return linear


def test_trainer_in_mixed_precision_saves_a_plain_model(tmp_path):
    """accelerate wraps the forward for bfloat16 and unwraps it in between: the patch stays in it."""
    model = patch(make())
    trainer = trained(model, tmp_path, bf16=True, gradient_accumulation_steps=1)
    assert trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)(**batch()).logits is None
    trainer.save_model(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(again) is transformers.Qwen2ForCausalLM
    for name, values in again.state_dict().items():
        assert torch.equal(values, model.state_dict()[name])


def test_compute_metrics_gets_logits_where_it_is_asked_for(tmp_path):
    model = patch(make(), logits_in_eval=True)
    assert model.train()(**batch()).logits is None
    assert model.eval()(**batch()).logits.shape == (3, 11, V)
    assert model(**batch(), upge={}).logits is None


def test_the_signature_keeps_the_columns():
    names = list(inspect.signature(patch(make()).forward).parameters)
    assert names[:-2] == list(inspect.signature(make().forward).parameters)[:-1]
    assert names[-2:] == ["upge", "kwargs"]
    inputs = batch()
    positional = patch(make())(inputs["input_ids"], inputs["attention_mask"], None, None, None, inputs["labels"])
    assert positional.loss == patch(make())(**inputs).loss


# --- with PEFT and accelerate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [[], ["lm_head"]], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("order", ["patch first", "PEFT first"])
def test_peft(order, head):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], modules_to_save=head, init_lora_weights=False
    )

    def adapted(patched: bool) -> nn.Module:
        model = make()
        if patched and order == "patch first":
            patch(model)
        torch.manual_seed(5)
        model = peft.get_peft_model(model, config)
        return patch(model) if patched and order == "PEFT first" else model

    own, model = adapted(False), adapted(True)
    if head:  # what PEFT trains differs from what it has set aside
        for each in (own, model):
            with torch.no_grad():
                each.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    for each in (own, model):
        each(**batch(), num_items_in_batch=20).loss.backward()
    assert_same(gradients(model), gradients(own))
    assert any("lm_head" in name for name in gradients(model)) == bool(head)
    out = model(**batch(), upge={})
    assert out.logits is None
    assert out.upge.logprobs.shape == (3, 11)
    with model.disable_adapter(), own.disable_adapter():
        torch.testing.assert_close(model(**batch()).loss, own(**batch()).loss, rtol=3e-7, atol=0)


def test_an_adapter_on_the_head_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"])
    with pytest.raises(TypeError, match=r"model.*plain torch.nn.Linear.*modules_to_save"):
        patch(peft.get_peft_model(make(), config))
    model = peft.get_peft_model(patch(make()), config)
    with pytest.raises(TypeError, match=r"model.*plain torch.nn.Linear.*modules_to_save"):
        model(**batch())


def test_a_model_that_accelerate_has_placed():
    """Hooks of `device_map` stay around the forward, and bring the head's weight from where it was put."""
    accelerate = pytest.importorskip("accelerate")
    want = make()(**batch())
    model = accelerate.cpu_offload(make(), execution_device=torch.device("cpu"))
    assert model.lm_head.weight.is_meta
    patch(model)
    calls = []
    before = model._hf_hook.pre_forward
    model._hf_hook.pre_forward = lambda *args, **kwargs: calls.append(1) or before(*args, **kwargs)
    with torch.no_grad():
        out = model(**batch())
    torch.testing.assert_close(out.loss, want.loss, rtol=3e-7, atol=0)
    assert out.logits is None
    assert calls == [1]
    assert torch.equal(model(batch()["input_ids"]).logits, make()(batch()["input_ids"]).logits)


# --- what is refused --------------------------------------------------------------------------------------------------


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
