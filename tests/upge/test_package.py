"""`upge` as a separate package: it needs only PyTorch, and loads Triton only when a kernel is used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import upge

NEW_MODULES = """
import sys
import torch

before = set(sys.modules)
import upge

hidden = torch.ones(3, 2, requires_grad=True)
out = upge.fused_policy_loss(hidden, torch.ones(4, 2), torch.zeros(3, dtype=torch.long), upge.SFT())
out.loss.backward()
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_a_loss_on_a_cpu_imports_only_torch_and_the_standard_library() -> None:
    result = subprocess.run([sys.executable, "-c", NEW_MODULES], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) - {"torch", *sys.stdlib_module_names} == {"upge"}


def test_integrations_are_imported_when_they_are_asked_for() -> None:
    code = "import sys, upge; print('transformers' in sys.modules); upge.integrations.transformers.patch"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    with pytest.raises(AttributeError, match=r"upge.integrations has openrlhf, .*; got 'ollama'"):
        upge.integrations.ollama  # noqa: B018


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    x = torch.zeros(1, 1)
    targets = torch.zeros(1, dtype=torch.long)
    with pytest.raises(
        ValueError, match=r"backend: 'triton' needs .* not installed \(pip install \"upge\[triton\]\"\)"
    ):
        upge.linear_logprobs(x, x, targets, backend="triton")
    assert upge.linear_logprobs(x, x, targets).logprobs.item() == 0.0


def test_every_exported_name_exists_and_is_documented() -> None:
    assert upge.__version__
    for name in upge.__all__:
        assert getattr(upge, name).__doc__, name
