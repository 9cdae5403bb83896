"""Puts a trainer together from a recipe: settings and data are checked first, models are loaded last."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from hpt.config.schema import Config
from hpt.config.sections.rewards import VERIFIER
from hpt.data.preview import show_first
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question, has_answers, load_questions
from hpt.data.selection import select_by_length
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.memory import check_memory
from hpt.memory.out_of_memory import memory_phase
from hpt.method.advantage import EstimateAdvantages, after_overlong_penalty, find_estimator, group_advantages
from hpt.method.gate import gate_of
from hpt.method.micro_batches import MicroBatcher
from hpt.method.official import official_weights
from hpt.model.critic import Critic, ValueModel
from hpt.model.loading import check_model_settings, load_policy
from hpt.model.policy import Policy, PolicyModule, check_backend
from hpt.model.positions import check_positions
from hpt.model.reference import Reference
from hpt.optim.engine import OptimizerEngine
from hpt.optim.engines import check_optimizer_engine, make_optimizer_engine
from hpt.rollout import (
    EngineInputs,
    RolloutEngine,
    check_rollout_engine,
    make_rollout_engine,
    require_rollout_packages,
)
from hpt.support.device import pick_device
from hpt.support.distributed import ALONE, World
from hpt.support.errors import DataError
from hpt.support.messages import show
from hpt.support.named_functions import user_function
from hpt.support.quiet import quiet_libraries
from hpt.training.callbacks import callbacks_of
from hpt.training.phases import PhaseClock
from hpt.training.trainer import Trainer
from hpt.verify import RewardFunctions, TrainerState, Verifier, make_reward_functions, make_verifier
from hpt.verify.answers import check_answers
from hpt.verify.trial import try_rewards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The questions of a run, as they are trained and evaluated on."""

    questions: list[Question]
    held_out: list[Question]
    renderer: PromptRenderer
    longest_prompt: int  # in tokens, of both
    example: Question  # has a demonstration where any has one, also where the run needs none


@contextmanager
def assemble(config: Config, checkpoint: Path | None, world: World = ALONE) -> Iterator[Trainer]:
    """This rank's trainer of a run, with the weights of `checkpoint` if there is one. Errors name what to change."""
    quiet_libraries()
    device = pick_device(config.device)
    check_settings(config, device)
    unstarted_verifier, unstarted_functions = make_verifier(config.verify), make_reward_functions(config)
    prepare(config, world)
    data = load_data(config)
    verified = config.needs_answers or (data.held_out and has_answers(data.held_out))
    with (
        unstarted_verifier if verified else nullcontext(unstarted_verifier) as verifier,
        unstarted_functions or nullcontext() as reward_functions,
    ):
        check_what_is_judged(config, data, verifier)
        if reward_functions:
            world.once(partial(try_reward_functions, config, data, verifier, reward_functions))
        with memory_phase("load", config):
            policy, engine, batches = make_policy(config, checkpoint, device, world)
            reference = Reference(policy, config) if config.loss.kl_coef else None
            critic = make_critic(config, checkpoint, device, batches) if config.rl.advantage == "gae" else None
            stop_ids, longest_prompt = data.renderer.stop_ids, data.longest_prompt
            rollout_engine = make_rollout_engine(
                EngineInputs(config, policy.model, device, stop_ids, longest_prompt, engine.gathered_parameters)
            )
        trainer = make_trainer(
            config,
            questions=data.questions,
            held_out=data.held_out,
            renderer=data.renderer,
            rollout_engine=rollout_engine,
            verifier=verifier,
            reward_functions=reward_functions,
            policy=policy,
            engine=engine,
            micro_batches=batches,
            reference=reference,
            critic=critic,
            world=world,
        )
        with closing(rollout_engine):
            yield trainer


def make_trainer(
    config: Config,
    *,
    questions: Sequence[Question],
    held_out: Sequence[Question],
    renderer: PromptRenderer,
    rollout_engine: RolloutEngine,
    verifier: Verifier,
    policy: Policy,
    engine: OptimizerEngine,
    micro_batches: MicroBatcher,
    reward_functions: RewardFunctions | None = None,
    reference: Reference | None = None,
    critic: Critic | None = None,
    world: World = ALONE,
) -> Trainer:
    """A trainer from its parts, with what the recipe asks for: gate, advantages, callbacks, official weights."""
    clock = PhaseClock(config)
    official = config.loss.aggregation == "official"
    return Trainer(
        config=config,
        questions=questions,
        held_out=held_out,
        renderer=renderer,
        rollout_engine=rollout_engine,
        verifier=verifier,
        gate=gate_of(config),
        estimate_advantages=advantages_of(config, critic),
        policy=policy,
        engine=engine,
        micro_batches=micro_batches,
        clock=clock,
        callbacks=callbacks_of(config, policy, micro_batches, clock, reference=reference, critic=critic),
        reweight=official_weights(config.rollout.max_tokens) if official else None,
        reward_functions=reward_functions,
        world=world,
    )


def check_settings(config: Config, device: torch.device) -> None:
    """ConfigError where a setting asks for something that this machine or installation does not have."""
    check_backend(config.loss.backend, device)
    check_model_settings(config.model, device)
    check_optimizer_engine(config)
    require_rollout_packages(config)
    gate_of(config)
    if config.rl.advantage != "gae":
        find_estimator(config.rl.advantage)


def prepare(config: Config, world: World) -> None:
    """Calls the recipe's `prepare`, on one rank."""
    if config.prepare:
        function = user_function(config.prepare, field="prepare", arguments=["config"])
        world.once(lambda: function(config))


def load_data(config: Config) -> Data:
    """Reads and checks everything a run needs but the weights. Says what is left out, and shows the first prompt."""
    needs_demonstrations = config.gate.needs_demonstrations
    questions = load_questions(config.data.train, config.data.columns, need_demonstration=needs_demonstrations)
    example = next((question for question in questions if question.demonstration), questions[0])
    if not needs_demonstrations:
        questions = [replace(question, demonstration=None) for question in questions]
    held_out: list[Question] = []
    if config.data.eval:
        held_out = load_questions(config.data.eval, config.data.columns, need_demonstration=False)
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=config.model.trust_remote_code)
    renderer = PromptRenderer(tokenizer, config.prompt, eos_token_ids=generation_ends(config.model.path))
    check_rollout_engine(config, renderer.stop_ids)
    selection = select_by_length(
        questions,
        renderer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_demonstration_tokens=config.max_demonstration_tokens,
        on_long=config.data.too_long,
        source=config.data.train,
    )
    if selection.dropped:
        logger.info(
            f"Left out {selection.dropped} of {len(questions)} questions: {selection.long_prompts} with too long a "
            f"prompt, {selection.long_demonstrations} with too long a demonstration."
        )
    if not selection.questions:
        raise DataError(f"{config.data.train}: every question is longer than the limits in data")
    longest_prompt = selection.longest_prompt
    needed = {"the longest prompt and its demonstration": selection.longest_example}
    if config.gate.needs_rollouts:
        tokens = config.rollout.max_tokens
        needed[f"the longest prompt and rollout.max_tokens = {tokens:,}"] = selection.longest_prompt + tokens
    if held_out:
        tokens = config.eval_max_tokens
        longest_held_out = max(map(len, renderer.encode_prompts(held_out)))
        longest_prompt = max(longest_prompt, longest_held_out)
        needed[f"the longest held-out prompt and {tokens:,} tokens of a response"] = longest_held_out + tokens
    check_positions(config.model.path, needed, trust_remote_code=config.model.trust_remote_code)
    check_memory(config, prompt_tokens=selection.longest_prompt)
    show(logger, show_first(renderer, selection.questions[0]))
    return Data(selection.questions, held_out, renderer, longest_prompt, example)


def check_what_is_judged(config: Config, data: Data, verifier: Verifier) -> None:
    """DataError where a question's rollouts could not be judged."""
    if config.needs_answers:
        check_answers(verifier, data.questions, config.data.train)
    if has_answers(data.held_out):
        check_answers(verifier, data.held_out, config.data.eval or "")
    elif config.gate.reads == VERIFIER:
        raise DataError(
            f"data.eval = {config.data.eval!r}: not every question has an answer to evaluate by; give all of them "
            "one, or name a reward and its threshold in gate.reads and gate.threshold, which then says what is right"
        )


def try_reward_functions(config: Config, data: Data, verifier: Verifier, functions: RewardFunctions) -> None:
    """Calls every reward once. ConfigError or RewardError where one cannot be called on this data."""

    def encode(text: str) -> list[int]:
        return list(data.renderer.tokenizer(text, add_special_tokens=False)["input_ids"])

    functions.check_columns(data.example.columns, config.data.train)
    state = TrainerState(global_step=0, max_steps=config.steps, epoch=0.0)
    asked = verifier if config.needs_answers else None
    try_rewards(config.reward_weights, functions, asked, data.example, encode, state)


def make_policy(
    config: Config, checkpoint: Path | None, device: torch.device, world: World
) -> tuple[Policy, OptimizerEngine, MicroBatcher]:
    """The model to train inside its optimizer engine, and what makes micro-batches for it."""
    model = load_policy(config, checkpoint, device)
    engine = make_optimizer_engine(PolicyModule(model, config.loss.backend), config, world)
    batches = MicroBatcher(config.batch.tokens, config.packs_rows(device.type), device, world, engine.min_micro_batches)
    return Policy(model, config, engine.module), engine, batches


def make_critic(config: Config, checkpoint: Path | None, device: torch.device, batches: MicroBatcher) -> Critic:
    """A critic whose body is another copy of the policy's."""
    model = ValueModel(load_policy(config, checkpoint, device).get_decoder())
    optimizer = config.optimizer.model_copy(update={"lr": config.critic.lr})
    engine = make_optimizer_engine(model, config.model_copy(update={"optimizer": optimizer}), ALONE)
    return Critic(model, engine, config.critic, batches)


def advantages_of(config: Config, critic: Critic | None) -> EstimateAdvantages:
    """How the recipe estimates advantages."""
    estimate = critic.estimate_advantages if critic else group_advantages(config)
    if config.rl.overlong is not None:
        return after_overlong_penalty(config, estimate)
    return estimate
