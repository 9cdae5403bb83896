"""Patched models in the Trainer of transformers, with PEFT's adapters, and placed by accelerate."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hf_models import V, assert_same, batch, gradients, make
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from upge.integrations.transformers import patch


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
