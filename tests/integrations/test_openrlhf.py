"""OpenRLHF's own Actor beside ours. `make test-integrations` runs this in an environment that has OpenRLHF."""

# ruff: noqa: E402

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

if importlib.util.find_spec("openrlhf") is None:
    pytest.skip("OpenRLHF is not installed", allow_module_level=True)
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # OpenRLHF compiles its entropy, which takes longer than the tests

import torch
from torch import Tensor, nn

sys.modules.setdefault("flash_attn_2_cuda", ModuleType("flash_attn_2_cuda"))  # its padding is plain PyTorch
import deepspeed
import openrlhf.models.actor as theirs
import ray
import torch.distributed as dist
import transformers
from openrlhf.models import ring_attn_utils
from peft import LoraConfig, get_peft_model
from upge.integrations import openrlhf

NAMES = ["unpad_and_slice_tensor", "compute_entropy", "log_probs_from_logits"]
WIDTH, VOCABULARY = 32, 101


@pytest.fixture(autouse=True)
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs.Actor, "forward", theirs.Actor.forward)
    for name in NAMES:
        monkeypatch.setattr(theirs, name, getattr(theirs, name))


def tiny_model(make: type = transformers.Qwen3Config, **changes: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "vocab_size": VOCABULARY, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = make(**sizes, **heads, attn_implementation="sdpa", **changes)
    return transformers.AutoModelForCausalLM.from_config(config)


def make_actor(model: nn.Module, temperature: float = 1.0, packing: bool = False) -> theirs.Actor:
    actor = theirs.Actor(model, temperature=temperature)
    actor.packing_samples = packing
    return actor


def batch() -> dict[str, Tensor]:
    """Prompts padded on the left, responses on the right."""
    g = torch.Generator().manual_seed(1)
    attention_mask = torch.tensor([[0, 0] + [1] * 8, [1] * 7 + [0] * 3, [1] * 10])
    action_mask = torch.tensor([[1] * 4 + [1] * 2, [1] * 3 + [0] * 3, [1] * 6])
    sequences = torch.randint(VOCABULARY, attention_mask.shape, generator=g)
    return {"sequences": sequences, "attention_mask": attention_mask, "action_mask": action_mask}


def step(actor: nn.Module, **options: Any) -> list[Tensor]:
    """Log-probabilities, entropies where they are asked for, and all gradients."""
    actor.zero_grad()
    inputs = batch()
    if options.get("return_logprobs"):
        del inputs["action_mask"]
    result = actor(**inputs, **options)
    logprobs, output = result if isinstance(result, tuple) else (result, {})
    values = [logprobs, *([output.entropy] if options.get("return_entropy") else [])]
    g = torch.Generator().manual_seed(2)
    torch.autograd.backward(values, [torch.randn(value.shape, generator=g) for value in values])
    gradients = [weight.grad for weight in actor.parameters() if weight.grad is not None]
    return [value.detach() for value in values] + gradients


def same(ours: list[Tensor], others: list[Tensor]) -> None:
    """Equal to about 100 roundings of float32."""
    for mine, other in zip(ours, others, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


CALLS = {
    "PPO": {"return_output": True, "return_entropy": True},
    "PPO without an entropy bonus": {"return_output": True},
    "log-probabilities of a frozen model": {},
    "SFT, DPO": {"return_output": True, "return_logprobs": True},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_results_are_those_of_openrlhf(options: dict[str, bool], packing: bool, temperature: float) -> None:
    actor = make_actor(tiny_model(), temperature, packing)
    expected = step(actor, **options)
    openrlhf.install()
    same(step(actor, **options), expected)
    assert actor.temperature == temperature


@pytest.mark.parametrize(
    "change",
    [
        lambda model: get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")),
        lambda model: model.gradient_checkpointing_enable() or model.train(),
        lambda model: setattr(model.lm_head, "bias", nn.Parameter(torch.linspace(-1, 1, VOCABULARY))) or model,
    ],
    ids=["LoRA", "gradient checkpointing", "a head with a bias"],
)
def test_results_are_those_of_openrlhf_for(change: Callable[[nn.Module], nn.Module]) -> None:
    actor = make_actor(change(tiny_model()), 0.7)
    expected = step(actor, **CALLS["PPO"])
    openrlhf.install()
    same(step(actor, **CALLS["PPO"]), expected)


def test_no_logits_are_formed() -> None:
    actor = make_actor(tiny_model())
    openrlhf.install()
    formed = []
    actor.model.lm_head.register_forward_hook(lambda head, inputs, output: formed.append(tuple(output.shape)))
    _, output = actor(**batch(), **CALLS["PPO"])
    assert formed == [(3, 10, 2)]
    assert output.logits is None


def test_calls_for_logits_are_as_before() -> None:
    actor = make_actor(tiny_model(), 0.7)
    inputs = {"sequences": batch()["sequences"], "attention_mask": batch()["attention_mask"], "return_output": True}
    expected = actor(**inputs).logits
    openrlhf.install()
    assert torch.equal(actor(**inputs).logits, expected)


@pytest.mark.parametrize(
    "model",
    [lambda: tiny_model(transformers.Gemma2Config), lambda: tiny_model(transformers.GraniteConfig, logits_scaling=8.0)],
    ids=["capped", "scaled"],
)
def test_models_that_change_their_logits_are_refused(model: Callable[[], nn.Module]) -> None:
    actor = make_actor(model())
    openrlhf.install()
    with pytest.raises(NotImplementedError, match="caps or scales"):
        actor(**batch())
    assert "forward" not in vars(actor.model.lm_head)


def test_a_head_with_lora_is_refused() -> None:
    lora = LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    actor = make_actor(get_peft_model(tiny_model(), lora))
    openrlhf.install()
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Linear; got Linear"):
        actor(**batch())


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DeepSpeed in a process group of one, without compiling its shared-memory collectives."""
    monkeypatch.setattr(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_under_zero_3_an_update_is_that_of_openrlhf() -> None:
    """The head's weight is there only during the head's call."""
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }

    def updated() -> list[Tensor]:
        actor = make_actor(tiny_model(), 0.7)
        sgd = torch.optim.SGD(actor.parameters(), lr=1.0)
        actor.model, *_ = deepspeed.initialize(model=actor.model, optimizer=sgd, config=settings)
        weights = list(actor.model.parameters())
        assert {weight.numel() for weight in weights} == {0}
        logprobs, output = actor(**batch(), **CALLS["PPO"])
        assert actor.model.module.lm_head.weight.numel() == 0
        actor.model.backward(logprobs.sum() - 0.1 * output.entropy.sum())
        actor.model.step()
        with deepspeed.zero.GatheredParameters(weights):
            return [logprobs.detach(), output.entropy.detach(), *(weight.detach().clone() for weight in weights)]

    expected = updated()
    openrlhf.install()
    same(updated(), expected)


def test_with_ring_attention_results_are_those_of_openrlhf() -> None:
    """Each of two processes has a slice of the packed sequences, and gathers the results."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, __file__], check=True, timeout=300)


def with_ring_attention() -> None:
    dist.init_process_group("gloo")
    ring_attn_utils.update_ring_attn_params = lambda lengths: None  # tells the attention kernels, which need a GPU
    actor = make_actor(tiny_model(), 0.7, packing=True)
    options = {**CALLS["PPO"], "ring_attn_group": dist.group.WORLD}
    expected = step(actor, **options)
    openrlhf.install()
    same(step(actor, **options), expected)
    dist.destroy_process_group()


def test_ray_workers_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a job that was submitted with this runtime environment, whose driver calls ray.init as OpenRLHF does."""
    environment = {"worker_process_setup_hook": "upge.integrations.openrlhf.install"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": environment}))

    @ray.remote
    def installed() -> bool:
        sys.modules["flash_attn_2_cuda"] = ModuleType("flash_attn_2_cuda")
        from openrlhf.models import Actor

        return hasattr(Actor.forward, "_upge_replaced")

    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {"NCCL_DEBUG": "WARN"}})
    try:
        assert ray.get(installed.remote(), timeout=120)
    finally:
        ray.shutdown()


def test_it_installs_when_the_actor_is_imported() -> None:
    program = """
        import sys, types
        import upge.integrations.openrlhf as ours
        ours.install()
        ours.install()
        assert "deepspeed" not in sys.modules and "transformers" not in sys.modules
        sys.modules["flash_attn_2_cuda"] = types.ModuleType("flash_attn_2_cuda")
        from openrlhf.models import Actor
        installed = Actor.forward
        assert installed.__wrapped__.__module__ == "openrlhf.models.actor"
        assert installed.__code__.co_filename == ours.__file__
        ours.install()
        assert Actor.forward is installed
    """
    subprocess.run([sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines())], check=True)


if __name__ == "__main__":
    with_ring_attention()
