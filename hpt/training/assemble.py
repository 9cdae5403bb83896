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
from hpt.data.order import MixedOrder, QuestionOrder, make_order
from hpt.data.preview import show_first
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question, has_answers
from hpt.data.sources import LoadedSource
from hpt.data.training_data import log_what_is_left_out, make_renderer, read_questions, select_questions
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
from hpt.support.upload import check_logged_in
from hpt.training.callbacks import callbacks_of
from hpt.training.phases import PhaseClock
from hpt.training.trainer import Trainer
from hpt.verify import RewardFunctions, TrainerState, Verifier, make_reward_functions, make_verifier
from hpt.verify.answers import check_answers
from hpt.verify.demonstrations import SAMPLE, remembered_check
from hpt.verify.trial import try_rewards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The questions of a run, as they are trained and evaluated on."""

    sources: list[LoadedSource]  # with the questions that fit
    held_out: list[LoadedSource]
    renderer: PromptRenderer
    longest_prompt: int  # in tokens, of both

    @property
    def questions(self) -> list[Question]:
        return [question for source in self.sources for question in source.questions]

    @property
    def held_out_questions(self) -> list[Question]:
        return [question for source in self.held_out for question in source.questions]

    @property
    def example(self) -> Question:
        """The first question with a demonstration, if any has one."""
        return next((question for question in self.questions if question.demonstration), self.questions[0])

    def order(self, config: Config) -> QuestionOrder | MixedOrder:
        """Which of `questions` each step sees."""
        sizes = [len(source.questions) for source in self.sources]
        weights = [source.weight for source in self.sources]
        return make_order(sizes, weights, config.batch.questions, config.seed)


@contextmanager
def assemble(config: Config, checkpoint: Path | None, world: World = ALONE) -> Iterator[Trainer]:
    """This rank's trainer of a run, with the weights of `checkpoint` if there is one. Errors name what to change."""
    quiet_libraries()
    device = pick_device(config.device)
    check_settings(config, device)
    unstarted_verifier, unstarted_functions = make_verifier(config.verify), make_reward_functions(config)
    prepare(config, world)
    data = load_data(config)
    with unstarted_verifier as verifier, unstarted_functions or nullcontext() as reward_functions:
        check_verifiable(config, data, verifier)
        if reward_functions:
            world.once(partial(try_reward_functions, config, data, verifier, reward_functions))
        data = replace(data, sources=without_wrong_demonstrations(config, data.sources, verifier, world))
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
        with closing(rollout_engine):
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
    clock = PhaseClock(config)
    official = config.loss.aggregation == "official"
    return Trainer(
        config=config,
        questions=questions,
        order=order or QuestionOrder(len(questions), config.batch.questions, config.seed),
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


def load_data(config: Config) -> Data:
    """Reads and checks everything a run needs but the weights. Says what is left out, and shows the first prompt."""
    train, held_out = read_questions(config)
    renderer = make_renderer(config)
    check_rollout_engine(config, renderer.stop_ids)
    sources = []
    longest_prompt = longest_example = 0
    for source in train:
        log_what_is_left_out(source, renderer)
        selection = select_questions(config, source, renderer)
        if selection.dropped:
            logger.info(
                f"{source.name}: left out {selection.dropped} of {len(source.questions)} questions: "
                f"{selection.long_prompts} with too long a prompt, {selection.long_demonstrations} with too long a "
                "demonstration."
            )
        if not selection.questions:
            raise DataError(f"{source.name}: every question is longer than the limits in data")
        sources.append(replace(source, questions=selection.questions))
        longest_prompt = max(longest_prompt, selection.longest_prompt)
        longest_example = max(longest_example, selection.longest_example)
    trained_prompt = longest_prompt
    needed = {"the longest prompt and its demonstration": longest_example}
    if config.gate.needs_rollouts:
        tokens = config.rollout.max_tokens
        needed[f"the longest prompt and rollout.max_tokens = {tokens:,}"] = trained_prompt + tokens
    for source in held_out:
        tokens = config.eval_max_tokens
        longest_held_out = max(map(len, renderer.encode_prompts(source.questions)))
        longest_prompt = max(longest_prompt, longest_held_out)
        needed[f"the longest prompt of {source.name} and {tokens:,} tokens of a response"] = longest_held_out + tokens
    check_positions(config.model, needed)
    check_memory(config, prompt_tokens=trained_prompt)
    show(logger, show_first(renderer, sources[0].questions[0], all_turns=config.data.loss_on == "all"))
    return Data(sources, held_out, renderer, longest_prompt)


def check_verifiable(config: Config, data: Data, verifier: Verifier) -> None:
    """DataError where the verifier cannot use an answer that this run needs."""
    for source in data.sources if config.needs_answers else []:
        check_answers(verifier, source.questions, source.name)
    for source in data.held_out if config.eval.every and has_answers(data.held_out_questions) else []:
        check_answers(verifier, source.questions, source.name)


def without_wrong_demonstrations(
    config: Config, sources: Sequence[LoadedSource], verifier: Verifier, world: World
) -> list[LoadedSource]:
    """The questions to train on, as `data.wrong_demonstrations` says; how many are wrong is logged in any case.

    A question whose demonstration is dropped is dropped as a whole: a gate could send it to SFT at any step.
    """
    keep = config.data.wrong_demonstrations == "keep"
    if not config.gate.needs_demonstrations:
        return list(sources)
    result = world.once(
        lambda: remembered_check(
            Path(config.output) / "demonstrations.json",
            config.verify,
            verifier,
            [question for source in sources for question in source.questions],
            limit=SAMPLE if keep else None,
            parsable=config.needs_answers,
        )
    )
    if result.refused:
        logger.warning("%s", result.summary)
    if result.refused and config.data.wrong_demonstrations == "error":
        raise DataError(f"{result.summary}; data.wrong_demonstrations=drop leaves these questions out")
    if keep or not result.refused:
        return list(sources)
    kept = []
    for source in sources:
        questions = [question for question in source.questions if question.id not in result.refused]
        if not questions:
            raise DataError(f"{source.name}: the verifier refuses every demonstration")
        kept.append(replace(source, questions=questions))
    return kept


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
