"""Puts a trainer together from a recipe: settings and data are checked first, models are loaded last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from hpt.config.schema import Config
from hpt.data.order import MixedOrder, QuestionOrder
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.memory.out_of_memory import memory_phase
from hpt.method.advantage import EstimateAdvantages, after_overlong_penalty, find_estimator, group_advantages
from hpt.method.gate import gate_of
from hpt.method.micro_batches import MicroBatcher
from hpt.method.official import official_weights
from hpt.method.probe import Probe
from hpt.model.critic import Critic, ValueModel
from hpt.model.loading import check_model_settings, load_policy
from hpt.model.policy import Policy, PolicyModule, check_backend
from hpt.model.reference import Reference
from hpt.optim.engine import OptimizerEngine
from hpt.optim.engines import check_optimizer_engine, make_optimizer_engine
from hpt.rollout import (
    EngineInputs,
    RolloutEngine,
    make_rollout_engine,
    require_rollout_packages,
)
from hpt.support.device import pick_device
from hpt.support.distributed import ALONE, World
from hpt.support.named_functions import user_function
from hpt.support.quiet import quiet_libraries
from hpt.support.upload import check_logged_in
from hpt.training.callbacks import callbacks_of
from hpt.training.phases import PhaseClock
from hpt.training.run_data import (
    Data,
    check_verifiable,
    load_data,
    show_first_question,
    without_wrong_demonstrations,
)
from hpt.training.trainer import Trainer
from hpt.verify import RewardFunctions, TrainerState, Verifier, make_reward_functions, make_verifier
from hpt.verify.trial import try_rewards

logger = logging.getLogger(__name__)


@contextmanager
def assemble(
    config: Config,
    checkpoint: Path | None,
    world: World = ALONE,
    *,
    when_read: Callable[[Data], None] = lambda data: None,
) -> Iterator[Trainer]:
    """This rank's trainer of a run, with the weights of `checkpoint` if there is one. Errors name what to change.

    when_read: called with the data, before a model is loaded.
    """
    quiet_libraries()
    device = pick_device(config.device)
    check_settings(config, device)
    unstarted_verifier, unstarted_functions = make_verifier(config.verify), make_reward_functions(config)
    with ExitStack() as stack:
        with memory_phase("load", config):
            prepare(config, world)
            data = load_data(config)
            when_read(data)
            verifier = stack.enter_context(unstarted_verifier)
            reward_functions = stack.enter_context(unstarted_functions) if unstarted_functions else None
            check_verifiable(config, data, verifier)
            if reward_functions:
                world.once(partial(try_reward_functions, config, data, verifier, reward_functions))
            data = replace(data, sources=without_wrong_demonstrations(config, data.sources, verifier, world))
            show_first_question(config, data)
            policy, engine, batches = make_policy(config, checkpoint, device, world)
            reference = Reference(policy, config) if config.loss.kl_coef else None
            critic = make_critic(config, checkpoint, device, batches) if config.rl.advantage == "gae" else None
            stop_ids, longest_prompt = data.renderer.stop_ids, data.longest_prompt
            rollout_engine = make_rollout_engine(
                EngineInputs(config, policy.model, device, stop_ids, longest_prompt, engine.gathered_parameters)
            )
            stack.enter_context(closing(rollout_engine))
        trainer = make_trainer(
            config,
            questions=data.questions,
            order=data.order(config),
            held_out=data.held_out_questions,
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
        yield trainer


def make_trainer(
    config: Config,
    *,
    questions: Sequence[Question],
    order: QuestionOrder | MixedOrder | None = None,
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
    """A trainer from its parts, with what the recipe asks for: gate, advantages, callbacks, official weights.

    order: None shuffles `questions` as one source.
    """
    clock, gate = PhaseClock(config), gate_of(config)
    official = config.loss.aggregation == "official"
    return Trainer(
        config=config,
        questions=questions,
        order=order or QuestionOrder(len(questions), config.batch.questions, config.seed),
        held_out=held_out,
        renderer=renderer,
        rollout_engine=rollout_engine,
        verifier=verifier,
        gate=gate,
        estimate_advantages=advantages_of(config, critic),
        policy=policy,
        engine=engine,
        micro_batches=micro_batches,
        clock=clock,
        callbacks=callbacks_of(config, policy, micro_batches, clock, reference=reference, critic=critic),
        reweight=official_weights(config.rollout.max_tokens, world.size) if official else None,
        reward_functions=reward_functions,
        probe=Probe(config, gate) if config.rollout.probe else None,
        world=world,
    )


def check_settings(config: Config, device: torch.device) -> None:
    """ConfigError where a setting asks for something that this machine or installation does not have."""
    check_backend(config.loss.backend, device)
    check_model_settings(config.model, device)
    check_optimizer_engine(config)
    require_rollout_packages(config)
    if config.checkpoint.push_to_hub:
        check_logged_in("checkpoint.push_to_hub")
    gate_of(config)
    if config.rl.advantage != "gae":
        find_estimator(config.rl.advantage)


def prepare(config: Config, world: World) -> None:
    """Calls the recipe's `prepare`, on one rank."""
    if config.prepare:
        function = user_function(config.prepare, field="prepare", arguments=["config"])
        world.once(lambda: function(config))


def try_reward_functions(config: Config, data: Data, verifier: Verifier, functions: RewardFunctions) -> None:
    """Calls every reward once. ConfigError or RewardError where one cannot be called on this data."""

    def encode(text: str) -> list[int]:
        return list(data.renderer.tokenizer(text, add_special_tokens=False)["input_ids"])

    for source in data.sources:
        functions.check_columns(source.questions[0].columns, source.name)
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
