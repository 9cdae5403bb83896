"""Three training steps on fixed rows, in one process or under torchrun in several: for test_deepspeed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hpt.config.recipe import build_config, merge
from hpt.config.schema import Config
from hpt.config.sections.model import LoraConfig
from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import ONLY_DEMONSTRATION, ONLY_ROLLOUTS
from hpt.model.reference import Reference
from hpt.records.checkpoints import checkpoint_path
from hpt.rollout import Rollout
from hpt.support.distributed import World
from hpt.support.quiet import quiet_libraries
from hpt.training import assemble
from hpt.training.checkpoint import load_state, save_checkpoint
from hpt.training.processes import connected
from hpt.training.trainer import Trainer

VOCABULARY = 23


def made_up_rollout(length: int, first: int) -> Rollout:
    tokens = [2 + (first + 3 * place) % (VOCABULARY - 2) for place in range(length)]
    return Rollout(tokens, [-3.0] * length, "stop")


def learned(kind: str, question: int, length: int = 6) -> Experience:
    """One question. `rl`: rollouts with different scores, `same`: rollouts without signal, `sft`: a demonstration."""
    prompt = [2 + question, 4, 5 + question % 3]
    rollouts = [made_up_rollout(length + extra, question + extra) for extra in (0, 1, 2, 5)]
    advantages = [0.0] * 4 if kind == "same" else [0.75, -0.25, -0.25, -0.25]
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        rollout.advantage = advantage
    experience = Experience(Question(str(question), "", ""), prompt, rollouts, ONLY_ROLLOUTS)
    if kind == "sft":
        experience.decision = ONLY_DEMONSTRATION
        experience.demonstration = rollouts[3].tokens[:length]
    return experience


# The questions of a step. Rows go to the ranks longest first, so their lengths decide which rank gets them.
DATA = {
    "mixed": [learned("rl", 0), learned("sft", 1, 8), learned("same", 2), learned("rl", 3, 3), learned("sft", 4, 4)],
    "sft": [learned("sft", question, 3 + question) for question in range(6)],
    "rl": [learned("rl", question) for question in range(2)],
    "apart": [learned("sft", 0, 40), learned("same", 1), learned("rl", 2, 3)],  # SFT on one rank, RL on the other
    "one row": [learned("same", 0), learned("sft", 1)],  # nothing on the second rank
    "no row": [learned("same", 0), learned("same", 1)],
}


@dataclass(frozen=True)
class Case:
    name: str
    data: str = "mixed"
    stage: int = 0  # 0: engine local
    tokens: int = 1000  # per micro-batch
    settings: tuple[tuple[str, Any], ...] = ()  # sections of the recipe
    offload: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        recipe: dict[str, Any] = {
            "output": "o",
            "steps": 6,
            "device": "cpu",
            "model": {"path": "m"},
            "data": {"train": "t"},
            "rollout": {"n": 4},
            "loss": {"entropy_coef": 0.01},
            "optimizer": {"lr": 1e-3, "clip_grad_norm": 0.1, "schedule": "cosine", "warmup_steps": 1},
            "batch": {"tokens": self.tokens},
        }
        if self.stage:
            # By default small weights are not sharded, and here all are small.
            zero = {"stage3_param_persistence_threshold": 0}
            options = {"zero_optimization": zero if self.stage == 3 else {}}
            recipe["engine"] = "deepspeed"
            recipe["deepspeed"] = {"stage": self.stage, "timeout": 2, "options": options}
            recipe["deepspeed"] |= dict.fromkeys(self.offload, True)
        for section, values in self.settings:
            merge(recipe, {section: dict(values)})
        return build_config(recipe, source=self.name)


OPTIMIZER, PARAMETERS = "offload_optimizer", "offload_parameters"
BFLOAT16 = (("model", (("dtype", "bfloat16"),)),)
SKIPPING = (("optimizer", (("skip_grad_norm", 0.05),)),)  # below every norm except that of "no row"
REUSE = (("rl", (("objective", "GRPO"),)), ("batch", (("updates", 2),)))  # two updates: old log-probabilities
ENTROPY_WEIGHTS = (("loss", (("entropy_weights", True),)),)
KL = (("loss", (("kl_coef", 0.5),)),)
LORA_KL = (*KL, ("model", (("lora", LoraConfig(rank=4)),)))

# Micro-batches on each rank for "mixed": 1, 2 and 4.
BUDGETS = {1: 1000, 2: 40, 4: 18}


def _cases() -> Iterator[Case]:
    for stage in (1, 2, 3):
        for count, tokens in BUDGETS.items():
            yield Case(f"zero-{stage}, {count} micro-batches", stage=stage, tokens=tokens)
    for stage, offload in ((1, (OPTIMIZER,)), (2, (OPTIMIZER,)), (3, (OPTIMIZER, PARAMETERS))):
        yield Case(f"zero-{stage} offload, 2 micro-batches", stage=stage, tokens=BUDGETS[2], offload=offload)
    for stage in (2, 3):  # stage 1 is the optimizer of stage 2 with whole gradients
        for data in DATA:
            if data != "mixed":
                yield Case(f"zero-{stage}, {data}", data, stage, BUDGETS[2])
        for name, settings in (("skipping", SKIPPING), ("two updates", REUSE), ("bfloat16", BFLOAT16)):
            yield Case(f"zero-{stage}, {name}", stage=stage, tokens=BUDGETS[2], settings=settings)
    for stage, (name, settings) in product((2, 3), (("KL", KL), ("LoRA and KL", LORA_KL))):
        yield Case(f"zero-{stage}, {name}", stage=stage, tokens=BUDGETS[2], settings=settings)
    yield Case("zero-3, entropy weights", stage=3, tokens=BUDGETS[2], settings=ENTROPY_WEIGHTS)


CASES = {case.name: case for case in _cases()}


def make_start(folder: Path) -> None:
    """Writes start/, a tiny model without biases: a key's bias has gradient 0, which AdamW would turn into noise."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(shape).save_pretrained(folder / "start")


def make_trainer(case: Case, world: World, start: Path, checkpoint: Path | None = None) -> Trainer:
    """A trainer for the model in `start` or in a checkpoint, without the parts that `update` does not need."""
    config = case.config
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(start)})})
    policy, engine, batches = assemble.make_policy(config, checkpoint, torch.device("cpu"), world)
    reference = Reference(policy, config) if config.loss.kl_coef else None
    unused: Any = None
    return assemble.make_trainer(
        config,
        questions=[Question("q", "", "", "", None)] * 200,
        held_out=[],
        renderer=unused,
        rollout_engine=unused,
        verifier=unused,
        policy=policy,
        engine=engine,
        micro_batches=batches,
        reference=reference,
        world=world,
    )


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    weights = trainer.engine.gathered_state_dict()
    return {n: w.clone() for n, w in (trainer.policy.model.state_dict() if weights is None else weights).items()}


def train(case: Case, trainer: Trainer, steps: int = 3) -> dict[str, Any]:
    """What each update did, the rows per micro-batch of each rank, and the weights before and after."""
    (rows, *_) = trainer.rows(DATA[case.data])
    own = [len(batch.rows) for batch in trainer.micro_batches(rows)]
    found: dict[str, Any] = {"rows": trainer.world.gather(own), "updates": [], "loss": [], "tokens": []}
    found["start"] = weights_of(trainer)
    for _ in range(steps):
        stats = trainer.update(trainer.rows(DATA[case.data]))
        found["updates"] += [(update.grad_norm, update.lr, update.skipped) for update in stats.updates]
        found["loss"].append(stats.counts.loss)
        found["tokens"].append(stats.counts.tokens)
    found["weights"] = weights_of(trainer)
    return found


def resumed(case: Case, world: World, folder: Path) -> dict[str, Any]:
    """Like `train`, but saved after the second step and resumed."""
    trainer = make_trainer(case, world, folder / "start")
    train(case, trainer, 2)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    run = folder / case.name
    weights = trainer.engine.gathered_state_dict()
    save_checkpoint(run, 2, trainer.policy.model, tokenizer, trainer.state_dict(), keep=1, weights=weights, world=world)
    checkpoint = checkpoint_path(run, 2)
    trainer = make_trainer(case, world, folder / "start", checkpoint)
    trainer.load_state_dict(load_state(checkpoint, world))
    return train(case, trainer, 1)


RESUMED = [f"zero-{kind}, 2 micro-batches" for kind in ("1", "2 offload", "3", "3 offload")]
RESUMED += [f"zero-{stage}, {kind}" for stage in (2, 3) for kind in ("bfloat16", "LoRA and KL")]


def main(folder: Path) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    with connected(next(iter(CASES.values())).config) as world:
        results = {name: train(case, make_trainer(case, world, folder / "start")) for name, case in CASES.items()}
        for name in RESUMED:
            results[f"{name}, resumed"] = resumed(CASES[name], world, folder)
        if world.main:
            torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
