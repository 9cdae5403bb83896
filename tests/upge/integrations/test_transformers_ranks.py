"""A patched model over two processes: DistributedDataParallel, FSDP2 and DeepSpeed's ZeRO-3, against one process.

Run as a script, with a folder for the results, this file is one of the two ranks.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import upge
from torch import Tensor, nn

RANKS, ROWS, LENGTH, V = 2, 4, 9, 97
HEADS = {"untied": False, "tied": True}


def make(tied: bool) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    return Qwen2ForCausalLM(config)


def patched(tied: bool) -> nn.Module:
    from upge.integrations.transformers import patch

    return patch(make(tied))


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, V, (ROWS, LENGTH), generator=g)
    prompts = torch.tensor([1, 4, 2, 6])[:, None]  # ranks have different numbers of tokens
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(torch.arange(LENGTH) < prompts, -100),
        "advantages": torch.randn(ROWS, LENGTH, generator=g),
    }


def loss(model: nn.Module, rank: int | None = None) -> Tensor:
    """SFT and REINFORCE on a rank's rows, or on all, with normalisers of all rows."""
    rows = batch() if rank is None else {name: values[rank::RANKS] for name, values in batch().items()}
    ids, labels, advantages = rows.values()
    items = batch()["labels"][:, 1:].ne(-100).sum()
    sft = model(input_ids=ids, labels=labels, num_items_in_batch=items)
    policy = {"objectives": upge.REINFORCE(), "advantages": advantages, "entropy_coef": 0.1}
    rl = model(input_ids=ids, labels=labels, num_items_in_batch=items, upge=policy)
    assert sft.logits is None
    assert rl.upge.logprobs.shape == labels.shape
    return sft.loss + rl.loss


def expected(tied: bool) -> dict[str, Tensor]:
    """The gradients in one process, from the model's own logits."""
    model = make(tied)
    ids, labels, advantages = batch().values()
    logits = model(ids).logits[:, :-1].double()
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    counted = labels[:, 1:] != -100
    l = logp.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    per_token = -l - advantages[:, 1:] * l - 0.1 * entropy
    (per_token[counted].sum() / counted.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    """The gradients that two processes compute (in this file's `main`), by wrapper and case."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(RANKS)
    ]
    assert [rank.wait(timeout=400) for rank in ranks] == [0, 0]
    return torch.load(folder / "gradients.pt")


@pytest.mark.parametrize(("wrapper", "cases"), [("ddp", 4), ("fsdp", 4), ("zero", 2)])
def test_two_ranks_get_the_gradient_of_one_process(found, wrapper, cases):
    if wrapper == "zero":
        pytest.importorskip("deepspeed")
    of_wrapper = {case: gradients for case, gradients in found.items() if case.startswith(wrapper)}
    assert len(of_wrapper) == cases
    for case, gradients in of_wrapper.items():
        wanted = expected("untied" not in case)
        assert gradients.keys() == wanted.keys(), case
        for name, want in wanted.items():
            # Some biases have no gradient but rounding.
            assert torch.allclose(gradients[name], want, rtol=2e-5, atol=2e-6), (case, name)


def ddp(rank: int) -> dict[str, dict[str, Tensor]]:
    """Also as Trainer sets it up by default, with a search for unused parameters, which takes the output apart."""
    found = {}
    for case, tied in HEADS.items():
        for unused in (False, True):
            model = nn.parallel.DistributedDataParallel(patched(tied), find_unused_parameters=unused)
            loss(model, rank).backward()
            found[f"{case}, unused={unused}"] = {n: p.grad for n, p in model.module.named_parameters()}
    return found


def fsdp(rank: int) -> dict[str, dict[str, Tensor]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from upge.integrations.transformers import patch

    mesh = init_device_mesh("cpu", (RANKS,))
    found = {}
    for case, tied in HEADS.items():
        for last in (False, True):
            model = make(tied) if last else patched(tied)
            for layer in (*model.model.layers, *([] if tied else [model.lm_head])):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            if last:
                patch(model)
            loss(model, rank).backward()
            found[f"{case}, patched last={last}"] = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
    casting = fully_shard(patched(False), mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"upge\['advantages'\].*float32.*bfloat16.*cast_forward_inputs=False"):
        loss(casting, rank)
    return found


def zero(rank: int) -> dict[str, dict[str, Tensor]]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use
    config = {
        "train_micro_batch_size_per_gpu": ROWS // RANKS,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # By default parameters below 100,000 entries stay whole.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    found = {}
    for case, tied in HEADS.items():
        model = patched(tied)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        assert model.lm_head.weight.numel() == 0  # empty until a hook gathers it
        engine.backward(loss(engine, rank))
        assert model.lm_head.weight.numel() == 0
        found[case] = {name: safe_get_full_grad(p) for name, p in model.named_parameters()}
    return found


def main(folder: str) -> None:
    # The ranks find each other through a file: a free port may be taken before both have loaded DeepSpeed.
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    wrappers = [ddp, fsdp] + [zero] * (importlib.util.find_spec("deepspeed") is not None)
    found = {}
    for wrapper in wrappers:
        for case, gradients in wrapper(rank).items():
            # All average over ranks. The normalisers are global already, so the sum is wanted.
            found[f"{wrapper.__name__}, {case}"] = {name: RANKS * g for name, g in gradients.items()}
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
