"""A head sharded over the vocabulary: on 2 and 3 ranks, with uneven shards, the same as in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import upge
from upge.backends.chunked import ChunkedWorkspace
from upge.backends.triton.workspace import TritonWorkspace
from upge.inputs import HeadInputs, NeededGradients
from upge.vocabulary import VocabularyShard

SIZES = {2: (190, 111), 3: (150, 40, 111)}  # of 301 entries
PRESETS = {
    "SFT": upge.SFT(),
    "REINFORCE": upge.REINFORCE(),
    "PPO": upge.PPO(dual_clip=1.1),
    "GRPO": upge.GRPO(),
    "DrGRPO": upge.DrGRPO(),
    "DAPO": upge.DAPO(),
    "CISPO": upge.CISPO(),
    "GSPO": upge.GSPO(0.03, 0.04),
    "SRFT": upge.SRFT(),
    "LUFFY": upge.LUFFY(),
    "DFT": upge.DFT(),
    "SAPO": upge.SAPO(),
    "function": upge.Objective.from_function(lambda l, b: -(l - b.old_logprobs).exp() * b.advantages),
}
OPTIONS = {
    "plain": {},
    "regularised": {"entropy_coef": 0.1, "kl_coef": 0.2, "lse_coef": 0.01, "evaluate": "all"},
    "softcap": {"softcap": 6.0, "temperature": 0.7, "logit_scale": 0.8, "entropy_coef": 0.1},
}


@pytest.mark.parametrize(("backend", "ranks"), [("torch", 3), ("triton", 2)])
def test_ranks_get_the_numbers_of_one_process(ranks, backend, tmp_path):
    environment = os.environ | {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, __file__, backend, str(tmp_path)], env=environment | {"RANK": str(rank)})
        for rank in range(ranks)
    ]
    assert [worker.wait(timeout=400) for worker in workers] == [0] * ranks


@pytest.mark.parametrize("make", [ChunkedWorkspace, TritonWorkspace])
def test_ranks_with_uneven_shards_have_the_same_chunks(make):
    """Collectives combine them. A head of so many entries has several chunks where its shard is small."""
    chunks = set()
    for size in (300_000, 1_000):
        shard = VocabularyShard(dist.ProcessGroup(0, 2), 0, size, 301_000, largest=300_000)
        head = HeadInputs(torch.ones(4, 2), torch.zeros(size, 2), torch.zeros(4, dtype=torch.int64), shard=shard)
        chunks.add(make(head, NeededGradients(True, True, False)).chunk_rows)
    assert len(chunks) == 1
    assert chunks.pop() < 4096


def test_the_reference_has_no_group():
    with pytest.raises(ValueError, match="backend: 'reference' has no group"):
        upge.linear_logprobs(
            torch.ones(1, 2),
            torch.ones(3, 2),
            torch.zeros(1, dtype=torch.long),
            group=dist.ProcessGroup(0, 1),
            backend="reference",
        )


def on_a_rank(backend: str) -> None:
    """Compare the sharded call with the whole one, which every rank computes for itself."""
    from conftest import make_problem

    rank, group = dist.get_rank(), dist.group.WORLD
    sizes = SIZES[dist.get_world_size()]
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    on_triton = backend == "triton"  # the interpreter is slow
    for dtype in (torch.float32, torch.bfloat16)[: 1 if on_triton else 2]:
        p = make_problem(n=30 if on_triton else 100, dtype=dtype)
        with torch.no_grad():
            p.bias[5] = -torch.inf  # switched off
            p.targets[p.targets == 5] = 6
        hidden, weight, bias = (x.detach().clone().requires_grad_() for x in (p.hidden, p.weight[mine], p.bias[mine]))
        presets = {name: PRESETS[name] for name in ("GRPO", "GSPO")} if on_triton else PRESETS
        for name, objective in presets.items():
            for options in OPTIONS.values():
                if dtype == torch.bfloat16 and name not in ("SFT", "GSPO"):
                    continue
                want, grads = p.loss(objective, backend, **options)
                out = upge.fused_policy_loss(
                    hidden, weight, p.targets, objective, bias=bias, group=group, backend=backend, **p.inputs | options
                )
                got = torch.autograd.grad(out.loss, [hidden, weight, bias])
                # Sums over the vocabulary are taken in another order: their rounding is that of a few additions.
                for a, b in zip(out, want, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6, equal_nan=True)
                bound = 1e-5 if dtype == torch.float32 else 2e-3  # of bf16 gradients half an ulp is 2e-3
                for a, b in zip(got, (grads[0], grads[1][mine], grads[2][mine]), strict=True):
                    assert (a - b).float().norm() <= bound * b.float().norm(), (name, options)
                assert_equal_on_all_ranks(torch.stack([x.float() for x in out[1:]]), got[0])
        everything = {"entropy": True, "lse": True, "top1": True, "softcap": 5.0, "mask": p.inputs["mask"]}
        values = upge.linear_logprobs(hidden, weight, p.targets, bias=bias, group=group, backend=backend, **everything)
        wanted = upge.linear_logprobs(p.hidden, p.weight, p.targets, bias=p.bias, backend=backend, **everything)
        for a, b in zip(values, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
        assert_equal_on_all_ranks(torch.stack([x.detach().float() for x in values]))
        loss = lambda o, p=p: (o.logprobs * p.inputs["advantages"] + 0.3 * o.entropy + 0.1 * o.lse).sum()
        got = torch.autograd.grad(loss(values), [hidden, weight, bias])
        expected = torch.autograd.grad(loss(wanted), p.leaves)
        for a, b in zip(got, (expected[0], expected[1][mine], expected[2][mine]), strict=True):
            assert (a - b).float().norm() <= (1e-5 if dtype == torch.float32 else 2e-3) * b.float().norm()

    if on_triton:
        return
    with pytest.raises(ValueError, match=r"targets: ids must be in \[0, 301\)"):
        upge.linear_logprobs(hidden, weight, torch.full((100,), 301), group=group, backend=backend)
    with pytest.raises(ValueError, match=r"weight: must have the same D on every rank.*\[24, 23"):
        upge.linear_logprobs(hidden[:, rank and 1 :], weight[:, rank and 1 :], p.targets, group=group, backend=backend)
    compiled = torch.compile(
        lambda h: upge.fused_policy_loss(h, weight, p.targets, upge.SFT(), group=group, backend=backend).loss,
        backend="aot_eager",
    )
    want = upge.fused_policy_loss(hidden, weight, p.targets, upge.SFT(), group=group, backend=backend).loss
    assert torch.equal(compiled(hidden), want)


def assert_equal_on_all_ranks(*tensors: torch.Tensor) -> None:
    """Bit for bit."""
    for tensor in tensors:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        for part in parts:
            torch.testing.assert_close(part, parts[0], rtol=0, atol=0, equal_nan=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    if sys.argv[1] == "triton" and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    store = dist.FileStore(str(Path(sys.argv[2]) / "store"), int(os.environ["WORLD_SIZE"]))
    dist.init_process_group("gloo", store=store, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    on_a_rank(sys.argv[1])
    dist.destroy_process_group()
