"""Hybrid Post-Training, top to bottom (arXiv 2509.04419, Algorithm 1).

for each step:
    sample n rollouts of each question            rollout
    verify them                                   verify
    P = mean score; (alpha, beta) = (f(P), g(P))  gate
    A_hat of each rollout                         advantage (critic)
    token rows with global normalisers            batch
    gradient of alpha L_RL + beta L_SFT           policy (upge), engine
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hpt.config.schema import Config
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question, QuestionOrder
from hpt.evaluation.evaluate import EvalResult, answer
from hpt.memory.out_of_memory import Phase, memory_phase
from hpt.method.advantage import advantages, advantages_with_demonstrations, overlong_penalty
from hpt.method.entropy_weights import entropy_weighted
from hpt.method.gate import Gate, needs_rollouts
from hpt.method.importance import corrected
from hpt.method.rows import (
    RL,
    Advantage,
    Group,
    MicroBatch,
    Row,
    Values,
    idle_batch,
    micro_batches,
    official_rows,
    share_of,
    token_rows,
)
from hpt.model.critic import Critic
from hpt.model.policy import Policy
from hpt.model.reference import Reference
from hpt.optim.deepspeed import ZeroEngine
from hpt.optim.local import Engine
from hpt.rollout import Rollout, RolloutEngine, Sampling
from hpt.rollout.responses import response_generator, response_text
from hpt.support.distributed import ALONE, World
from hpt.support.errors import HptError
from hpt.support.seeds import seed_for
from hpt.training import metrics as measure
from hpt.verify import Verdict, Verifier


@dataclass(frozen=True)
class Experience:
    """What one step learned about a question: rollouts, verdicts and the gate's decision."""

    question: Question
    rollouts: list[Rollout]
    responses: list[str]
    verdicts: list[Verdict]
    score: float  # P
    group: Group
    penalties: Sequence[float] = ()  # of each rollout, beside its score (rl.overlong)
    trained: bool = True  # dynamic sampling leaves out questions without a mixed outcome

    @property
    def mixed(self) -> bool:
        """Whether its rollouts have different scores."""
        return len({verdict.score for verdict in self.verdicts}) > 1


@dataclass
class Trainer:
    """Every part of a run, and the loop that joins them. `hpt.training.run` puts one together from a config.

    Of several processes each has a trainer. Questions are shared out for rollouts, verdicts and evaluation, what came
    of them is known to all, and all decide alike about all rows; the rows with signal are shared out again.
    """

    config: Config
    questions: Sequence[Question]
    held_out: Sequence[Question]
    tokenizer: PreTrainedTokenizerBase
    renderer: PromptRenderer
    rollout_engine: RolloutEngine
    verifier: Verifier
    gate: Gate
    policy: Policy
    engine: Engine | ZeroEngine
    critic: Critic | None = None  # only with rl.advantage "gae"
    reference: Reference | None = None  # only with loss.kl_coef > 0
    world: World = ALONE

    def __post_init__(self) -> None:
        self.order = QuestionOrder(len(self.questions), self.config.batch.questions, self.config.seed)
        self.clock: dict[str, float] = {}
        self.normalise: Callable[[list[Row]], list[Row]] = list
        if self.config.loss.aggregation == "official":
            self.normalise = partial(official_rows, max_tokens=self.config.rollout.max_tokens)

    def step(self, step: int) -> tuple[dict[str, float], list[Experience]]:
        """One training step; returns its metrics and what it saw. A pure function of weights, optimizer and step."""
        self.clock = {}
        began = time.perf_counter()
        torch.manual_seed(seed_for(self.config.seed, step, "train", self.world.rank))
        experiences = self.gather(step)
        self.world.agree(self.rollout_engine.sleep)
        with self._phase("train"):
            trained = self.learn([experience.group for experience in experiences if experience.trained])
        self.rollout_engine.weights_changed()
        self.clock["step"] = time.perf_counter() - began
        metrics = measure.step_metrics(experiences, trained, self.clock)
        if self.config.rollout.dynamic_rounds > 1:
            metrics |= measure.sampling_metrics(experiences, self.config.batch.questions)
        return metrics, experiences

    def gather(self, step: int) -> list[Experience]:
        """The step's questions explored; with dynamic sampling batch after batch, until enough have a mixed outcome.

        Every step has `rollout.dynamic_rounds` batches of questions of its own, so what it sees depends on no other.
        """
        rounds, wanted = self.config.rollout.dynamic_rounds, self.config.batch.questions
        experiences = []
        for batch in range((step - 1) * rounds + 1, step * rounds + 1):
            for experience in self.explore([self.questions[index] for index in self.order.batch(batch)], batch):
                trained = rounds == 1 or (experience.mixed and wanted > 0)
                wanted -= trained
                experiences.append(replace(experience, trained=trained))
            if wanted <= 0:
                break
        return experiences

    def explore(self, questions: Sequence[Question], batch: int) -> list[Experience]:
        """Rollouts, their verdicts, the gate and the advantages of a batch of questions."""
        prompts = self.renderer.encode_prompts(questions)
        if not needs_rollouts(self.config.gate):
            return [
                Experience(question, [], [], [], 0.0, self._group(question, prompt, 0.0))
                for question, prompt in zip(questions, prompts, strict=True)
            ]
        answered = self.world.spread(list(zip(questions, prompts, strict=True)), partial(self._answered, batch=batch))
        rollouts, responses, judged = (list(part) for part in zip(*answered, strict=True))
        scores = [[verdict.score for verdict in group] for group in judged]
        shares = [sum(group) / len(group) for group in scores]
        groups = [self._group(*parts) for parts in zip(questions, prompts, shares, strict=True)]
        penalties = [self._penalties(group) for group in rollouts]
        rewards = [
            [score + penalty for score, penalty in zip(*parts, strict=True)] if parts[1] else parts[0]
            for parts in zip(scores, penalties, strict=True)
        ]
        groups = self._with_advantages(groups, rollouts, rewards)
        return [
            Experience(*parts)
            for parts in zip(questions, rollouts, responses, judged, shares, groups, penalties, strict=True)
        ]

    def _answered(
        self, asked: Sequence[tuple[Question, list[int]]], batch: int
    ) -> list[tuple[list[Rollout], list[str], list[Verdict]]]:
        """Of each question and its prompt: rollouts, their texts and the verdicts on them."""
        settings = self.config.rollout
        sampling = Sampling(self.config.sampled, settings.max_tokens, settings.temperature, settings.top_p)
        seed = seed_for(self.config.seed, batch, "rollout", self.world.rank)
        responses = [[""] * sampling.n for _ in asked]
        with self.verifier.scoring() as scoring:

            def verify(index: int, place: int, rollout: Rollout) -> None:
                responses[index][place] = text = response_text(self.tokenizer, rollout)
                scoring.add((index, place), text, asked[index][0].answer)

            with self._phase("rollout"):
                prompts = [prompt for _, prompt in asked]
                rollouts = self.rollout_engine.generate(prompts, sampling, seed, on_rollout=verify)
            with self._phase("verify"):  # what remains of it
                verdicts = scoring.verdicts()
        judged = [[verdicts[index, place] for place in range(len(group))] for index, group in enumerate(rollouts)]
        return list(zip(rollouts, responses, judged, strict=True))

    def learn(self, groups: Sequence[Group]) -> measure.Trained:
        """The step's optimizer updates, each on an equal part of the questions."""
        updates = self.config.batch.updates
        parts = [token_rows(groups[part::updates], self.config) for part in range(updates)]
        self.policy.model.eval()
        trained = measure.Trained()
        if self.policy.needs_old_logprobs or self.config.loss.tis != "none":
            parts = [self._with_old_logprobs(rows) for rows in parts]
            if self.world.main:  # every rank has them all
                trained.add_old_logprobs([row for rows in parts for row in rows])
        if self.config.loss.tis != "none":
            parts = [[corrected(row, self.config.loss) for row in rows] for rows in parts]
            trained.add_importance([row for rows in parts for row in rows], self.config.loss)
        if self.reference:
            parts = [self._with_reference(rows, self.reference) for rows in parts]
        self.policy.model.train()
        for rows in parts:
            if self.config.loss.entropy_weights:
                rows = self._entropy_weighted(rows)
            for batch in self._micro_batches(rows, self.normalise):
                output = self.policy.loss(batch)
                self.engine.backward(output.loss)
                trained.add_batch(batch, output)
            trained.add_update(rows, self.engine.step())
            if self.critic:
                trained.add_critic_update(*self.critic.learn(rows, self._micro_batches))
        self.engine.end_step()
        if self.critic:
            self.critic.engine.end_step()
        return measure.over_ranks(self.world.gather(trained))

    def evaluate(self) -> EvalResult:
        """Held-out accuracy of the policy as it is; every evaluation of a run draws from the same seed."""
        settings = self.config.eval
        sampling = Sampling(
            settings.n,
            settings.max_tokens or self.config.rollout.max_tokens,
            settings.temperature,
            settings.top_p,
        )
        seed = seed_for(self.config.seed, 0, "eval", self.world.rank)
        generate = response_generator(self.rollout_engine, self.renderer, sampling, seed)
        with memory_phase("eval", self.config):
            results = self.world.spread(self.held_out, lambda own: answer(own, generate, self.verifier, settings.n))
        return EvalResult(settings.n, results)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the policy's weights; of this rank."""
        state = {"kind": self.engine.kind, "engine": self.engine.state_dict()}
        return state | ({"critic": self.critic.state_dict()} if self.critic else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """HptError where another kind of engine wrote the state."""
        if state["kind"] != self.engine.kind:
            raise HptError(
                f"the checkpoint was written by engine {state['kind']} and this run has {self.engine.kind}: "
                "resume it with the engine and the ZeRO stage it was started with"
            )
        self.engine.load_state_dict(state["engine"])
        if self.critic:
            self.critic.load_state_dict(state["critic"])

    def _group(self, question: Question, prompt: list[int], score: float) -> Group:
        """The question as the gate decided, before its rollouts; what the recipe gives no coefficient has none here."""
        alpha, beta, off = self.gate(score)
        beta *= self.config.sft.coef > 0
        off *= self.config.off_policy.coef > 0
        demonstration = self.renderer.demonstration_ids(question) if beta or off else []
        return Group(prompt, demonstration, [], [], alpha, beta, off)

    def _penalties(self, rollouts: Sequence[Rollout]) -> list[float]:
        overlong = self.config.rl.overlong
        if overlong is None:
            return []
        limits = self.config.overlong_limits
        return [overlong.penalty * overlong_penalty(len(rollout.tokens), *limits) for rollout in rollouts]

    def _with_advantages(
        self, groups: Sequence[Group], rollouts: Sequence[list[Rollout]], scores: Sequence[list[float]]
    ) -> list[Group]:
        estimator, off_estimator = self.config.rl.advantage, self.config.off_policy.advantage
        off_advantages = [1.0] * len(groups)
        values: Sequence[Sequence[Values] | None] = [None] * len(groups)
        estimates: Sequence[Sequence[Advantage]]
        if estimator == "gae":
            assert self.critic is not None
            prompts = [group.prompt for group in groups]
            estimates, values = self.critic.judge(prompts, rollouts, scores, self._micro_batches)
        elif off_estimator != "one" and self.config.demonstration_in_group:
            estimates, off_advantages = advantages_with_demonstrations(scores, estimator, off_estimator)
        else:
            estimates = advantages(scores, estimator)
        parts = zip(groups, rollouts, estimates, off_advantages, values, strict=True)
        return [
            replace(group, rollouts=own, advantages=found, off_advantage=off, values=judged)  # type: ignore[arg-type]
            for group, own, found, off, judged in parts
        ]

    def _with_old_logprobs(self, rows: Sequence[Row]) -> list[Row]:
        return self._measured(rows, self.policy.logprobs, lambda row, values: replace(row, old_logprobs=values))

    def _with_reference(self, rows: Sequence[Row], reference: Reference) -> list[Row]:
        """The rows with what the KL penalty reads: rollouts alone have one, since k3 is of the policy's own samples."""
        rollouts = [row for row in rows if row.signal == RL]
        with self._phase("reference"), reference.at_hand() as logprobs:
            rollouts = self._measured(rollouts, logprobs, lambda row, values: replace(row, ref_logprobs=values))
        return rollouts + [row for row in rows if row.signal != RL]

    def _entropy_weighted(self, rows: Sequence[Row]) -> list[Row]:
        return self._measured(rows, self.policy.entropies, entropy_weighted)

    def _measured(
        self,
        rows: Sequence[Row],
        measure_tokens: Callable[[MicroBatch], torch.Tensor],
        change: Callable[[Row, list[float]], Row],
    ) -> list[Row]:
        """The rows changed by what the policy, as it is, says of their response tokens."""
        places = {id(row): place for place, row in enumerate(rows)}
        own: dict[int, list[float]] = {}
        for batch in self._micro_batches(rows):
            values = measure_tokens(batch)
            if batch.rows:
                parts = values.split([row.response_length for row in batch.rows])
                own |= {places[id(row)]: part.tolist() for row, part in zip(batch.rows, parts, strict=True)}
        found = {place: values for part in self.world.gather(own) for place, values in part.items()}
        return [change(row, found[place]) if place in found else row for place, row in enumerate(rows)]

    def _micro_batches(
        self, rows: Sequence[Row], normalise: Callable[[list[Row]], list[Row]] = list
    ) -> Iterator[MicroBatch]:
        """Those of this rank. Each is a meeting of all ranks: who has fewer than another idles along."""
        device = self.policy.device
        packing, attention = self.config.batch.packing, self.config.model.attention
        packed = packing == "packed" or (packing == "auto" and device.type == "cuda" and attention != "eager")
        own = share_of([row for row in rows if row.has_signal], self.world.rank, self.world.size)
        batches = micro_batches(own, self.config.batch.tokens, packed=packed, normalise=normalise)
        least = 1 if self.config.engine == "deepspeed" else 0  # it cannot step without a gradient, be it 0
        count = max(least, *self.world.gather(len(batches)))
        for batch in batches + [idle_batch()] * (count - len(batches)):
            yield batch.to(device)

    @contextmanager
    def _phase(self, name: Phase) -> Iterator[None]:
        began = time.perf_counter()
        with memory_phase(name, self.config):
            yield
        self.clock[name] = self.clock.get(name, 0.0) + time.perf_counter() - began
