"""FusedLMHead in one process, and sharded over two by FSDP2 and by DeepSpeed's ZeRO-3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import upge
from torch import nn


class Model(nn.Module):
    """Embedding, one layer, head; the head tied to the embedding or not."""

    def __init__(self, tied: bool):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(40, 16)
        self.layer = nn.Linear(16, 16)
        self.head = upge.FusedLMHead(self.embedding if tied else nn.Linear(16, 40))

    def forward(self, ids, targets, *objectives, **options):
        return self.head(torch.tanh(self.layer(self.embedding(ids))), targets, *objectives, **options)


def batch():
    g = torch.Generator().manual_seed(1)
    ids, targets = torch.randint(0, 40, (2, 12), generator=g)
    return ids, targets, torch.randn(12, generator=g)


def losses(model, rows):
    """A policy loss and a loss through log-probabilities, with weights that are global over the ranks."""
    ids, targets, advantages = (x[rows] for x in batch())
    weights = torch.full((len(ids),), 1 / 12)
    loss = model(ids, targets, upge.REINFORCE(), advantages=advantages, weights=weights, entropy_coef=0.1).loss
    return loss + (model(ids, targets).logprobs * weights).sum()


def test_the_module_equals_plain_pytorch_on_its_layer():
    for tied in (False, True):
        model = Model(tied)
        ids, targets, _ = batch()
        hidden = torch.tanh(model.layer(model.embedding(ids)))
        z = F.linear(hidden, model.head.weight, model.head.bias)
        want = -F.cross_entropy(z, targets, reduction="none")
        torch.testing.assert_close(model(ids, targets).logprobs, want)
        assert (model.head.weight is model.embedding.weight) == tied
    assert "vocabulary=40, width=16" in repr(model)
    with pytest.raises(TypeError, match=r"layer.*Linear or torch.nn.Embedding.*Conv1d"):
        upge.FusedLMHead(nn.Conv1d(1, 1, 1))


@pytest.mark.parametrize("tied", [False, True])
def test_without_targets_it_is_the_layer_also_in_generation(tied):
    """As `lm_head` of a model of transformers, which soft-caps what its head returns."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "final_logit_softcapping": 3.0}
    model = Gemma2ForCausalLM(Gemma2Config(**size, **heads, tie_word_embeddings=tied)).eval()
    ids = torch.randint(0, 50, (2, 5))
    generate = lambda: model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    want, logits, hidden = generate(), model(ids).logits, model.model(ids).last_hidden_state
    model.lm_head = upge.FusedLMHead(model.lm_head, softcap=3.0)
    assert torch.equal(generate(), want)
    assert torch.equal(model(ids).logits, logits)
    got = model.lm_head(hidden[:, :-1], ids[:, 1:])
    torch.testing.assert_close(got.logprobs, torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0])
    with pytest.raises(ValueError, match="targets: must be given with objectives, weights; got None"):
        model.lm_head(hidden, objectives=upge.SFT(), weights=torch.ones(2, 5))


def test_a_scale_of_the_module():
    layer, hidden, targets = nn.Linear(16, 40), torch.randn(3, 16), torch.arange(3)
    head = upge.FusedLMHead(layer, logit_scale=0.25)
    want = torch.log_softmax(0.25 * layer(hidden), -1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(head(hidden, targets).logprobs, want)
    assert "logit_scale=0.25" in repr(head)


def test_a_sharded_weight_says_where_to_gather_it(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        weight = distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(TypeError, match=r"weight: .*DTensor.*FusedLMHead.*to_local\(\) and group="):
            upge.linear_logprobs(torch.ones(1, 2), weight, torch.zeros(1, dtype=torch.long))
    finally:
        dist.destroy_process_group()


def on_two_ranks(shard: str, folder: Path) -> dict[bool, dict[str, torch.Tensor]]:
    """The gradients that two processes compute (in this file's `main`), by whether the head is tied."""
    environment = os.environ | {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, shard, str(folder)], env=environment | {"RANK": str(rank), "LOCAL_RANK": "0"}
        )
        for rank in range(2)
    ]
    assert [w.wait(timeout=400) for w in workers] == [0, 0]
    return torch.load(folder / "gradients.pt")


@pytest.mark.parametrize("shard", ["fsdp", "zero"])
def test_two_ranks_get_the_gradient_of_one_process(shard, tmp_path):
    """The sharded weight is gathered for the head in forward and backward, and its gradient reduced."""
    if shard == "zero":
        pytest.importorskip("deepspeed")
    found = on_two_ranks(shard, tmp_path)
    for tied in (False, True):
        model = Model(tied)
        losses(model, torch.arange(12)).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[tied][name], parameter.grad, rtol=1e-5, atol=1e-7)
        assert ("head.weight" in found[tied]) == (not tied)


def fsdp(model: Model, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (2,))
    if model.head.weight is not model.embedding.weight:
        fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses(model, rows).backward()
    casting = fully_shard(Model(False), mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"weights.*float32.*bfloat16.*cast_forward_inputs=False"):
        losses(casting, rows)
    return {name: p.grad.full_tensor() for name, p in model.named_parameters()}


def zero(model: Model, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # By default parameters below 100,000 entries stay whole.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    assert model.head.weight.numel() == 0  # empty until a hook gathers it
    engine.backward(losses(engine, rows))
    assert model.head.weight.numel() == 0
    return {name: safe_get_full_grad(p) for name, p in model.named_parameters()}


def main(shard: str, folder: str) -> None:
    # The ranks find each other through a file: a free port may be taken before both have loaded DeepSpeed.
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for tied in (False, True):
        # Both average over ranks. The weights are already global, so the sum is wanted.
        gradients = {"fsdp": fsdp, "zero": zero}[shard](Model(tied), torch.arange(rank, 12, 2))
        found[tied] = {name: 2 * gradient for name, gradient in gradients.items()}
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    dist.barrier()  # gloo may abort where it is taken down while the other rank still uses it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
