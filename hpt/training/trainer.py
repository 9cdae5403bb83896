"""Hybrid Post-Training, top to bottom (arXiv 2509.04419, Algorithm 1).

for each step:
    sample n rollouts of each question            rollout    (with rollout.probe: k, and n where P is open)
    verify and reward them                        verify
    P = mean score; (alpha, beta) = (f(P), g(P))  gate
    A_hat of each rollout                         advantage
    token rows with global normalisers            rows
    gradient of alpha L_RL + beta L_SFT, update   policy (upge), optimizer engine

With several processes each has a trainer. Questions are distributed for rollouts, verdicts and evaluation; every rank
then knows all rollouts and makes the same decisions, and the rows with signal are distributed for training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil, isfinite
from typing import Any

import torch

from hpt.config.schema import Config
from hpt.data.order import MixedOrder, QuestionOrder
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question, has_answers
from hpt.evaluation.evaluate import EvalResult, Mark, answer
from hpt.memory.out_of_memory import memory_phase
from hpt.method.advantage import EstimateAdvantages
from hpt.method.dynamic_sampling import choose_mixed
from hpt.method.experience import Experience
from hpt.method.gate import Gate
from hpt.method.micro_batches import MicroBatcher
from hpt.method.official import Reweight
from hpt.method.probe import Probe
from hpt.method.rows import Row, token_rows
from hpt.model.policy import Policy
from hpt.optim.engine import OptimizerEngine, Update
from hpt.rollout import Rollout, RolloutEngine, Sampling
from hpt.rollout.counts import generate_counts
from hpt.rollout.responses import response_generator, response_text
from hpt.support.distributed import ALONE, World
from hpt.support.errors import HptError, MethodError
from hpt.support.seeds import Purpose, seed_for
from hpt.training.callbacks import Callback
from hpt.training.metrics import Metrics, StepStats, over_ranks, probe_metrics, sampling_metrics, step_metrics
from hpt.training.phases import PhaseClock
from hpt.verify import Judgement, Judging, Response, RewardFunctions, RewardVerdicts, TrainerState, Verifier

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """The parts of a run and the training step that joins them. `assemble` makes a trainer from a recipe."""

    config: Config
    questions: Sequence[Question]
    order: QuestionOrder | MixedOrder  # which of the questions each batch has
    held_out: Sequence[Question]
    renderer: PromptRenderer
    rollout_engine: RolloutEngine
    verifier: Verifier
    gate: Gate
    estimate_advantages: EstimateAdvantages
    policy: Policy
    engine: OptimizerEngine
    micro_batches: MicroBatcher
    clock: PhaseClock
    callbacks: Sequence[Callback] = field(default_factory=list)  # what only some methods do around updates
    reweight: Reweight | None = None  # only with loss.aggregation "official"
    reward_functions: RewardFunctions | None = None  # where the recipe lists any
    probe: Probe | None = None  # only with rollout.probe
    world: World = ALONE

    def __post_init__(self) -> None:
        self.steps_done = 0
        self.warned = False  # that no reward applies
        self.updating = False  # between the first change of weights in a step and its end: no checkpoint is possible

    def step(self, step: int) -> tuple[Metrics, list[Experience]]:
        """One training step; returns its metrics and experiences. A pure function of weights, optimizer and step."""
        self.clock.restart()
        torch.manual_seed(seed_for(self.config.seed, step, "train", self.world.rank))
        experiences: list[Experience] = []
        for batch in self.batches_of(step):
            sampled = self.draw(batch)
            if self.probe is None:
                self.sample_and_verify(step, batch, sampled)
            else:
                self.sample_and_verify(step, batch, self.probe.first(sampled))
                self.sample_and_verify(step, batch, self.probe.open(sampled))
            self.decide(sampled)
            experiences += sampled
            if self.enough(experiences):
                break
        self.warn_without_rewards(experiences)
        rows = self.rows(experiences)
        self.world.agree(self.rollout_engine.sleep)
        stats = self.update(rows)
        self.rollout_engine.weights_changed()
        if self.probe:
            self.probe.remember(experiences)
        self.steps_done = step
        metrics = self.metrics(experiences, stats)
        self.updating = False
        return metrics, experiences

    def batches_of(self, step: int) -> range:
        """The numbers of the step's batches of questions: one, or with dynamic sampling up to rollout.dynamic_rounds.

        No two steps share a batch, so what a step sees depends on no other step.
        """
        rounds = self.config.rollout.dynamic_rounds
        return range((step - 1) * rounds + 1, step * rounds + 1)

    def judging(self, step: int) -> Judging:
        """Verifier and reward functions for the rollouts of a batch."""
        state = self.state_after(step - 1)
        return Judging(self.config, self.verifier, self.reward_functions, state, self.demonstration_of)

    def state_after(self, step: int) -> TrainerState:
        """What reward functions are told about the run."""
        epoch = step * self.config.batch.questions / len(self.questions)
        return TrainerState(global_step=step, max_steps=self.config.steps, epoch=epoch)

    def demonstration_of(self, question: Question) -> Response:
        assert question.demonstration is not None
        return Response(question.demonstration, self.renderer.demonstration_ids(question))

    def draw(self, batch: int) -> list[Experience]:
        """The questions of a batch, with their prompts."""
        questions = [self.questions[index] for index in self.order.batch(batch)]
        prompts = self.renderer.encode_prompts(questions)
        return [Experience(*pair) for pair in zip(questions, prompts, strict=True)]

    def sample_and_verify(self, step: int, batch: int, experiences: Sequence[Experience]) -> None:
        """Gives the questions their rollouts, or further ones, with verdicts and rewards."""
        if not experiences or not self.config.gate.needs_rollouts:
            return
        purpose: Purpose = "rest" if experiences[0].rollouts else "rollout"
        with self.judging(step) as judging:
            seed = seed_for(self.config.seed, batch, purpose, self.world.rank)
            self.verify(experiences, self.sample(experiences, seed, judging), judging)

    def sample(self, experiences: Sequence[Experience], seed: int, judging: Judging) -> list[list[Rollout]]:
        """Samples n rollouts of each of this rank's questions or, with `rollout.probe`, those it is to have next.

        Each rollout is handed over to be judged as soon as it is finished, while others are sampled.
        """
        own = self.world.own(experiences)
        prompts = [experience.prompt for experience in own]
        sampling = Sampling.for_training(self.config)
        counts = [self.probe.missing(experience) if self.probe else sampling.n for experience in own]
        groups: list[list[Rollout]] = []

        def submit(index: int, number: int, rollout: Rollout) -> None:
            rollout.text = response_text(self.renderer.tokenizer, rollout)
            judging.add(index, number, counts[index], own[index].question, rollout)

        def generate() -> None:
            with self.clock.phase("rollout"):
                if self.probe:
                    groups.extend(generate_counts(self.rollout_engine, prompts, counts, sampling, seed, submit))
                else:
                    groups.extend(self.rollout_engine.generate(prompts, sampling, seed, submit))

        self.world.agree(generate)
        return groups

    def verify(
        self, experiences: Sequence[Experience], own_rollouts: Sequence[list[Rollout]], judging: Judging
    ) -> None:
        """Waits for what is said about this rank's rollouts, then gives every rank all rollouts."""

        def judged(own: Sequence[Experience]) -> list[tuple[list[Rollout], Judgement]]:
            with self.clock.phase("verify"):
                judgements = judging.results()
            return [(rollouts, judgements[index]) for index, rollouts in enumerate(own_rollouts)]

        for experience, (rollouts, judgement) in zip(experiences, self.world.spread(experiences, judged), strict=True):
            experience.add(rollouts, judgement)

    def decide(self, experiences: Sequence[Experience]) -> None:
        """Gate and advantages. Both may be functions of the user's: where one fails, all ranks raise MethodError."""

        def apply_both() -> None:
            try:
                self.apply_gate(experiences)
                self.estimate_advantages(experiences)
            except HptError as error:
                raise MethodError(str(error)) from error

        self.world.agree(apply_both)

    def apply_gate(self, experiences: Sequence[Experience]) -> None:
        """(alpha, beta) = (f(P), g(P)): how much of each signal every question gets."""
        for experience in experiences:
            experience.decide(self.gate)
            if experience.decision.uses_demonstration:
                experience.demonstration = self.renderer.demonstration_ids(experience.question)
                if self.config.data.loss_on == "all":
                    experience.conversation = self.renderer.conversation(experience.question)

    def warn_without_rewards(self, experiences: Sequence[Experience]) -> None:
        """Says once that no reward of the recipe applies to any rollout: none of them is trained on."""
        rollouts = [rollout for experience in experiences for rollout in experience.rollouts]
        if self.warned or not self.config.rewards or not rollouts:
            return
        if any(rollout.reward is not None for rollout in rollouts):
            return
        self.warned = True
        logger.warning(
            "No reward applies to any of the %d rollouts of this step, so RL trains on none of them: None from %s. "
            "Does a function read a column that the data lack?",
            len(rollouts),
            ", ".join(self.config.reward_weights),
        )

    def enough(self, experiences: Sequence[Experience]) -> bool:
        """Whether the step has enough questions; dynamic sampling marks and counts those with a mixed outcome."""
        if self.config.rollout.dynamic_rounds == 1:
            return True
        return choose_mixed(experiences, self.config.batch.questions)

    def rows(self, experiences: Sequence[Experience]) -> list[list[Row]]:
        """Makes the token rows of each update. Every `updates`-th question goes to the same update."""
        trained = [experience for experience in experiences if experience.trained]
        updates = self.updates_of(trained)
        return [token_rows(trained[part::updates], self.config) for part in range(updates)]

    def updates_of(self, trained: Sequence[Experience]) -> int:
        """How many optimizer updates the step has: a question without RL has one row, another as many as rollouts."""
        batch = self.config.batch
        if batch.rows_per_update is None:
            return batch.updates
        return max(1, min(batch.updates, ceil(len(token_rows(trained, self.config)) / batch.rows_per_update)))

    def update(self, updates: Sequence[Sequence[Row]]) -> StepStats:
        """Runs the optimizer updates of a step."""
        stats = StepStats()
        self.updating = self.engine.kind != "local"  # other engines have parts of an update in their own state
        with self.clock.phase("train"):
            self.policy.model.eval()
            for callback in self.callbacks:
                callback.before_updates(updates, stats)
            self.policy.model.train()
            for rows in updates:
                for callback in self.callbacks:
                    callback.before_update(rows, stats)
                for batch in self.micro_batches(rows, self.reweight):
                    output = self.policy.loss(batch)
                    self.engine.backward(output.loss)
                    stats.add_batch(batch, output)
                self.updating = True
                update = self.engine.step()
                self.warn_of_infinite_gradient(update)
                stats.add_update(rows, update)
                for callback in self.callbacks:
                    callback.after_update(rows, stats)
            self.engine.end_step()
            for callback in self.callbacks:
                callback.after_updates()
            stats.counts = over_ranks(self.world.gather(stats.counts))
        return stats

    def warn_of_infinite_gradient(self, update: Update) -> None:
        """In float16 it is usual until the loss scale fits."""
        if not isfinite(update.grad_norm) and self.config.model.dtype != "float16":
            logger.warning(
                f"Step {self.steps_done + 1}: an update is left out, since its gradient is not finite. Where that goes "
                "on, the run learns nothing: look at coefficients, optimizer.lr and the weights."
            )

    def metrics(self, experiences: Sequence[Experience], stats: StepStats) -> Metrics:
        metrics = step_metrics(experiences, stats, self.clock.stop())
        if self.config.some_without_demonstration:
            metrics["gate/without_demonstration"] = sum(experience.overruled for experience in experiences)
        if self.config.rollout.probe:
            metrics |= probe_metrics(experiences, self.config.rollout.probe, self.config.sampled)
        if self.config.rollout.dynamic_rounds > 1:
            metrics |= sampling_metrics(experiences, self.config.batch.questions)
        return metrics

    def evaluate(self) -> EvalResult:
        """Accuracy of the current policy on held-out questions; every evaluation of a run has the same seed."""
        sampling = Sampling.for_evaluation(self.config)
        seed = seed_for(self.config.seed, 0, "eval", self.world.rank)
        generate = response_generator(self.rollout_engine, self.renderer, sampling, seed)
        answer_own = partial(answer, generate=generate, mark=self._mark(), n=sampling.n)
        with memory_phase("eval", self.config):
            results = self.world.spread(self.held_out, answer_own)
        return EvalResult(sampling.n, results)

    def _mark(self) -> Mark:
        """What says which responses to held-out questions are right: the verifier, where all have an answer."""
        gate = self.config.gate
        if has_answers(self.held_out):
            return self.verifier.mark
        assert self.reward_functions is not None
        assert gate.threshold is not None
        state = self.state_after(self.steps_done)
        return RewardVerdicts(self.reward_functions, gate.reads, gate.threshold, state).mark

    def state_dict(self) -> dict[str, Any]:
        """This rank's state for a checkpoint, besides the policy's weights."""
        state = {"kind": self.engine.kind, "engine": self.engine.state_dict()}
        if self.probe:
            state["probe"] = self.probe.state_dict()
        for callback in self.callbacks:
            state |= callback.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """HptError if the state was written by another kind of engine."""
        if state["kind"] != self.engine.kind:
            raise HptError(
                f"the checkpoint was written by engine {state['kind']} and this run has {self.engine.kind}: "
                "resume it with the engine and the ZeRO stage it was started with"
            )
        self.engine.load_state_dict(state["engine"])
        if self.probe and "probe" in state:  # a run may begin to probe when it is resumed
            self.probe.load_state_dict(state["probe"])
        for callback in self.callbacks:
            callback.load_state_dict(state)
