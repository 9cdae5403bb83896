"""`use_logprobs`: TRL's own function replaced, its outputs, and trainers that we have no class for."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils
from trl_world import SILENT, assert_same_gradient, assert_same_metrics, make_model, questions, tokenizer, train
from upge.integrations.trl import installed, use_logprobs
from upge.integrations.trl.logprobs import Logprobs

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("temperature", "logit_scale"), [(1.0, 1.0), (0.7, 0.3)])
def test_every_output_is_that_of_trls_function(
    softcap: float | None, bias: bool, temperature: float, logit_scale: float
) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16), torch.randn(70, 16)
    targets, offset = torch.randint(0, 70, (40,)), torch.randn(70) if bias else None
    targets[:20] = (hidden @ weight.t() + (0 if offset is None else offset)).argmax(1)[:20]
    results = []
    for function in (Logprobs, ChunkedLogProbFunction):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, offset) if tensor is not None]
        given = leaves if bias else [*leaves, None]
        scores = function.apply(*given, targets, temperature, 32, softcap, logit_scale, OUTPUTS)
        (scores[0].sin().sum() + (scores[1] ** 2).sum()).backward()
        results.append((scores, [leaf.grad for leaf in leaves]))
    (ours, our_grads), (theirs, their_grads) = results
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    assert ours[4].sum() >= 20
    assert not ours[4].all()
    assert [score.requires_grad for score in ours] == [True, True, False, False, False]
    for mine, other in zip(our_grads, their_grads, strict=True):
        assert_same_gradient(mine, other)


def test_what_is_not_asked_for_is_none() -> None:
    scores = Logprobs.apply(torch.randn(3, 8), torch.randn(9, 8), None, torch.tensor([0, 1, 2]), 1.0, 32, None, 1.0, ())
    assert [score is None for score in scores] == [False, True, True, True, True]


def test_trls_function_comes_back() -> None:
    theirs = utils._ChunkedLogProbFunction
    with use_logprobs():
        assert utils._ChunkedLogProbFunction is Logprobs
        with use_logprobs():
            assert utils._ChunkedLogProbFunction is Logprobs
        assert utils._ChunkedLogProbFunction is Logprobs
    assert utils._ChunkedLogProbFunction is theirs
    with pytest.raises(RuntimeError, match="inside"), use_logprobs():
        raise RuntimeError("inside")
    assert utils._ChunkedLogProbFunction is theirs


def reward(completions: list[str], **_: Any) -> list[float]:
    return [len(set(text)) / 10 for text in completions]


def preferences() -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"{row}+1=", "chosen": f"{row + 1}", "rejected": "no idea"} for row in range(8)]
    )


def labelled() -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"{row}+1=", "completion": f"{row}", "label": row % 2 == 0} for row in range(8)]
    )


USUAL = {
    "max_steps": 2,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 4,
    "seed": 1,
}


def make_dpo(folder: Path, output: str) -> Any:
    return trl.DPOTrainer(
        str(folder),
        args=trl.DPOConfig(output, **SILENT, **USUAL, max_length=24),
        train_dataset=preferences(),
        processing_class=tokenizer(),
    )


def make_kto(folder: Path, output: str) -> Any:
    return trl.KTOTrainer(
        str(folder),
        args=trl.KTOConfig(output, **SILENT, **USUAL, max_length=24),
        train_dataset=labelled(),
        processing_class=tokenizer(),
    )


def make_rloo(folder: Path, output: str) -> Any:
    args = trl.RLOOConfig(output, **SILENT, **USUAL, num_generations=4, max_completion_length=8, beta=0.05)
    return trl.RLOOTrainer(str(folder), reward, args=args, train_dataset=questions(), processing_class=tokenizer())


@pytest.mark.parametrize("make", [make_dpo, make_kto, make_rloo])
def test_other_trainers_keep_their_gradients_and_logs(tmp_path: Path, make: Any) -> None:
    folder = make_model(tmp_path / "model")
    their_grads, their_logs = train(make(folder, str(tmp_path / "theirs")))
    calls = []
    with use_logprobs(), pytest.MonkeyPatch.context() as patch:
        apply = Logprobs.apply
        patch.setattr(Logprobs, "apply", staticmethod(lambda *args: calls.append(1) or apply(*args)))
        grads, logs = train(make(folder, str(tmp_path / "ours")))
    assert len(calls) >= 2
    for ours, theirs in zip(grads, their_grads, strict=True):
        assert_same_gradient(ours, theirs)
    for ours_line, their_line in zip(logs, their_logs, strict=True):
        assert_same_metrics(ours_line, their_line)


def test_another_version_of_trl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.17.2")
    with pytest.raises(ImportError, match=r'works with trl 1.16; installed is 1.17.2, .*pip install "trl==1.16'):
        installed.check_installed()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.16.3")
    installed.check_installed()
    monkeypatch.setitem(installed.NAMES, "trl.trainer.utils", ("_gone",))
    with pytest.raises(ImportError, match=r"installed is 1.16.3, which has no trl.trainer.utils._gone"):
        installed.check_installed()


def test_without_trl_the_import_says_what_to_install() -> None:
    code = """
import importlib.metadata as metadata
def missing(name): raise metadata.PackageNotFoundError(name)
metadata.version = missing
try: import upge.integrations.trl
except ImportError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'upge.integrations.trl needs trl, which is not installed: pip install "trl==1.16.*"'
