"""verl's own functions beside ours. `make test-integrations` runs this in an environment that has verl."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

pytest.importorskip("verl")

import transformers
from hydra import compose, initialize_config_dir
from upge.integrations import verl
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.experimental.torch_functional import FusedLinearForPPO

U = 2.0**-24  # unit roundoff of float32
THEIRS = FusedLinearForPPO.forward
WIDTH, VOCABULARY = 32, 101
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedLinearForPPO, "forward", THEIRS)


def run(inputs: tuple[Tensor, Tensor, Tensor], upstream: tuple[Tensor, Tensor], temperature: float) -> list[Tensor]:
    """Log-probabilities, entropies and the gradients of hidden states and weight."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in inputs[:2])
    logprobs, entropy = FusedLinearForPPO(chunk_size=5)(hidden, weight, inputs[2], temperature)
    torch.autograd.backward([logprobs, entropy], [upstream[0], upstream[1].to(entropy.dtype)])
    return [logprobs.detach(), entropy.detach(), hidden.grad, weight.grad]


def exact(inputs: tuple[Tensor, Tensor, Tensor], upstream: tuple[Tensor, Tensor], temperature: float) -> list[Tensor]:
    """The same in float64, from the logits."""
    hidden, weight = (x.detach().double().requires_grad_() for x in inputs[:2])
    every = (hidden @ weight.T / temperature).log_softmax(-1)
    logprobs, entropy = every.gather(-1, inputs[2].unsqueeze(-1)).squeeze(-1), -(every.exp() * every).sum(-1)
    torch.autograd.backward([logprobs, entropy], [x.double() for x in upstream])
    return [logprobs.detach(), entropy.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("shape", [(11,), (3, 7)], ids=["tokens", "batch"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_those_of_verl(shape: tuple[int, ...], temperature: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    randn = lambda *size: torch.randn(*size, generator=g).to(dtype)
    ids = torch.randint(VOCABULARY, shape, generator=g)
    inputs = randn(*shape, WIDTH), randn(VOCABULARY, WIDTH), ids
    upstream = torch.randn(*shape, generator=g), torch.randn(*shape, generator=g)

    theirs = run(inputs, upstream, temperature)
    verl.install()
    ours = run(inputs, upstream, temperature)
    for mine, other, true in zip(ours, theirs, exact(inputs, upstream, temperature), strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        if dtype == torch.bfloat16:  # verl rounds the logits to it, upge only the results
            assert (mine - true).abs().max() <= (other - true).abs().max()
        else:
            # A logit is a sum of WIDTH products, of a size up to that of the logits; a result sums VOCABULARY of them.
            size = float((inputs[0].abs() @ inputs[1].abs().T).max() / temperature)
            assert (mine - other).abs().max() <= 2 * (WIDTH + VOCABULARY) * U * size


def tiny_model(**changes: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "vocab_size": VOCABULARY, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Qwen3Config(**sizes, **heads, attn_implementation="sdpa", **changes)
    return transformers.Qwen3ForCausalLM(config).train()


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["torch", "liger"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one process", "FSDP2"])
def test_a_model_with_fused_kernels_uses_it(
    monkeypatch: pytest.MonkeyPatch, backend: str, sharded: bool, mesh: DeviceMesh
) -> None:
    """Both backends of `fused_kernel_options.impl_backend` that verl runs through this class."""
    model = tiny_model(tie_word_embeddings=True)
    monkeypatch.setattr(type(model), "forward", type(model).forward)  # verl sets it on the class
    apply_monkey_patch(model, use_remove_padding=False, use_fused_kernels=True, fused_kernels_backend=backend)
    if sharded:
        for part in [*model.model.layers, model]:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    ids = torch.randint(VOCABULARY, (2, 9))

    def step() -> list[Tensor]:
        model.zero_grad()
        out = model(input_ids=ids, temperature=0.8, return_dict=True, use_cache=False)
        assert out.logits is None
        (out.log_probs.sum() - 0.1 * out.entropy.sum()).backward()
        gradients = [weight.grad.full_tensor() if sharded else weight.grad for weight in model.parameters()]
        return [out.log_probs.detach(), out.entropy.detach(), *gradients]

    theirs = step()
    verl.install()
    counted = Mock(wraps=verl.linear_logprobs)
    monkeypatch.setattr(verl, "linear_logprobs", counted)
    ours = step()
    counted.assert_called_once()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_the_example_is_a_run_of_verl_whose_workers_install_it(tmp_path: Path) -> None:
    """Each worker makes the configuration of the model in `ActorRolloutRefWorker.init_model`, as is done here."""
    tiny_model().save_pretrained(tmp_path)
    small = [f"actor_rollout_ref.model.path={tmp_path}", "+actor_rollout_ref.model.load_tokenizer=false"]
    with initialize_config_dir(str(EXAMPLES), version_base=None):
        config = compose("verl_grpo", small)
    validate_config(config, use_reference_policy=False, use_critic=False)
    assert config.actor_rollout_ref.actor.use_fused_kernels

    sys.modules.pop(config.actor_rollout_ref.model.external_lib, None)
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    assert model.fused_kernel_options["impl_backend"] == "torch"
    installed = FusedLinearForPPO.forward
    assert installed is not THEIRS
    verl.install()
    assert FusedLinearForPPO.forward is installed


def test_under_autocast_results_are_no_less_precise_than_those_of_verl() -> None:
    """verl's FSDP engine runs the model under autocast; weights may be float32 then."""
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(VOCABULARY, (1, 13), generator=g)
    inputs = torch.randn(1, 13, WIDTH, generator=g), torch.randn(VOCABULARY, WIDTH, generator=g), ids
    upstream = torch.randn(1, 13, generator=g), torch.zeros(1, 13)
    true = exact(inputs, upstream, 1.0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = run(inputs, upstream, 1.0)
        verl.install()
        ours = run(inputs, upstream, 1.0)
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]
    assert (ours[0] - true).abs().max() <= (theirs[0] - true).abs().max()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, hidden_states: Tensor, weight: Tensor) -> None: ...

    monkeypatch.setattr(FusedLinearForPPO, "forward", forward)
    with pytest.raises(ImportError, match=r"verl 0\.9\.1 .*hidden_states, weight.*pip install verl==0\.9\.1"):
        verl.install()
