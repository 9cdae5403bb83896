"""Puts a run together from its config: every check first, the model last."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import upge
from rich.console import Console
from transformers.utils import logging as transformers_logging

from hpt.config.schema import Config
from hpt.data.prompt import PromptRenderer, Selection, generation_ends, load_tokenizer, select_by_length, show_first
from hpt.data.questions import Question, load_questions
from hpt.memory import check_memory
from hpt.memory.out_of_memory import memory_phase
from hpt.method.gate import make_gate, needs_demonstrations, needs_rollouts
from hpt.model.critic import Critic
from hpt.model.loading import check_model_settings, load_policy
from hpt.model.policy import Policy, PolicyModule
from hpt.model.positions import check_positions
from hpt.model.reference import Reference
from hpt.optim.deepspeed import ZeroEngine
from hpt.optim.local import Engine
from hpt.rollout import check_rollout_engine, make_rollout_engine
from hpt.support.distributed import ALONE, World
from hpt.support.errors import ConfigError, DataError
from hpt.support.named_functions import resolve
from hpt.support.optional_packages import require
from hpt.training.trainer import Trainer
from hpt.verify import Verifier, make_verifier


@contextmanager
def assemble(config: Config, checkpoint: Path | None, console: Console, world: World = ALONE) -> Iterator[Trainer]:
    """This rank's trainer of a run, with the weights of `checkpoint` if there is one. Errors name what to mend."""
    quiet_libraries()
    device = pick_device(config.device)
    gate = make_gate(config.gate, config.sampled)
    _check_backend(config.loss.backend, device)
    check_model_settings(config.model, device)
    if config.optimizer.states == "8bit":
        require("bitsandbytes", 'optimizer.states "8bit"', "'hpt[peft]'")
    if config.engine == "deepspeed":
        require("deepspeed", 'engine "deepspeed"', "'hpt[deepspeed]'")
    if config.rollout.engine == "vllm" and config.rollout.vllm.url is None:
        require("vllm", 'rollout.engine "vllm"', "'hpt[vllm]'")
    judge = make_verifier(config.verify)
    if config.prepare:
        _prepare(config, world)
    demonstrated = needs_demonstrations(config.gate)
    questions = load_questions(config.data.train, config.data.columns, need_demonstration=demonstrated)
    if not demonstrated:
        questions = [replace(question, demonstration=None) for question in questions]
    held_out: list[Question] = []
    if config.data.eval:
        held_out = load_questions(config.data.eval, config.data.columns, need_demonstration=False)
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=config.model.trust_remote_code)
    renderer = PromptRenderer(tokenizer, config.prompt, eos_token_ids=generation_ends(config.model.path))
    check_rollout_engine(config, renderer.stop_ids)
    selection, needed = _of_trainable_length(questions, renderer, config, console)
    questions = selection.questions
    if held_out:
        tokens = config.eval.max_tokens or config.rollout.max_tokens
        longest = max(map(len, renderer.encode_prompts(held_out)))
        needed[f"the longest held-out prompt and {tokens:,} tokens of a response"] = longest + tokens
    check_positions(config.model.path, needed, console, trust_remote_code=config.model.trust_remote_code)
    check_memory(config, console, prompt_tokens=selection.longest_prompt)
    console.print(show_first(renderer, questions[0]))
    with judge as verifier:
        check_answers(verifier, questions, config.data.train)
        check_answers(verifier, held_out, config.data.eval or "")

        def longest_prompt() -> int:
            return max(map(len, renderer.encode_prompts([*questions, *held_out])))

        with memory_phase("load", config):
            model = load_policy(config, checkpoint, device)
            policy = Policy(model, config)
            reference = Reference(policy, config) if config.loss.kl_coef else None
            engine = make_engine(policy.module, config, world)
            policy.module = engine.module
            critic = None
            if config.rl.advantage == "gae":
                critic = Critic(load_policy(config, checkpoint, device).get_decoder(), config)
            rollout_engine = make_rollout_engine(
                config, model, device, renderer.stop_ids, longest_prompt, engine.whole_weights
            )
        trainer = Trainer(
            config=config,
            questions=questions,
            held_out=held_out,
            tokenizer=tokenizer,
            renderer=renderer,
            rollout_engine=rollout_engine,
            verifier=verifier,
            gate=gate,
            policy=policy,
            engine=engine,
            critic=critic,
            reference=reference,
            world=world,
        )
        with closing(rollout_engine):
            yield trainer


def _prepare(config: Config, world: World) -> None:
    prepare = resolve(str(config.prepare), field="prepare", arguments=["config"])

    def run() -> None:
        prepare(config)

    world.once(run)


def make_engine(module: PolicyModule, config: Config, world: World) -> Engine | ZeroEngine:
    """The optimizer side of `module`, as `config.engine` asks."""
    if config.engine == "local":
        return Engine(module, config)
    return ZeroEngine(module, config, world)


def quiet_libraries() -> None:
    """A bar for every file saved and loaded, and notices, would break into the run's own lines."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # bitsandbytes' warns of faster kernels that it does without.
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where it is installed, says what it has chosen


def pick_device(name: str) -> torch.device:
    """auto is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = {name!r}: allowed are auto, cpu, cuda and cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}: torch sees no GPU; allowed here are auto and cpu")
    return device


def _check_backend(backend: str, device: torch.device) -> None:
    """ConfigError where the loss cannot be computed by `backend` on `device`."""
    head = torch.zeros(1, 2, device=device)
    try:
        upge.linear_logprobs(head, head, torch.zeros(1, dtype=torch.int64, device=device), backend=backend)
    except ValueError as error:
        raise ConfigError(f"loss.backend = {backend!r} on {device}: {error}") from None


def _of_trainable_length(
    questions: list[Question], renderer: PromptRenderer, config: Config, console: Console
) -> tuple[Selection, dict[str, int]]:
    """The questions that fit, and the tokens of the longest sequences that they make."""
    selection = select_by_length(
        questions,
        renderer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_demonstration_tokens=config.data.max_demonstration_tokens or config.rollout.max_tokens,
        on_long=config.data.too_long,
        source=config.data.train,
    )
    if selection.dropped:
        console.print(
            f"Left out {selection.dropped} of {len(questions)} questions: {selection.long_prompts} with too long a "
            f"prompt, {selection.long_demonstrations} with too long a demonstration."
        )
    if not selection.questions:
        raise DataError(f"{config.data.train}: every question is longer than the limits in data")
    needed = {"the longest prompt and its demonstration": selection.longest_example}
    if needs_rollouts(config.gate):
        tokens = config.rollout.max_tokens
        needed[f"the longest prompt and rollout.max_tokens = {tokens:,}"] = selection.longest_prompt + tokens
    return selection, needed


def check_answers(verifier: Verifier, questions: list[Question], source: str) -> None:
    """DataError where the verifier could not recognise a right response to a question of `source`."""
    usable = verifier.parsable([question.answer for question in questions])
    unusable = [question for question, fine in zip(questions, usable, strict=True) if not fine]
    if unusable:
        first = unusable[0]
        field = f"field {first.place.answer!r}" if first.place else "its answer"
        raise DataError(
            f"{source}, {first.named}: {field} is {first.answer!r}, which the verifier cannot parse; {len(unusable)} "
            f"of {len(questions)} questions are like that. Mend or remove them, or use a verify.function of your own"
        )
