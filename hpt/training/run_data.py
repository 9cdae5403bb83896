"""The data of a run: read, selected and checked before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpt.config.schema import Config
from hpt.data.demonstrations import as_wrong_demonstrations_says, demonstration_count
from hpt.data.order import MixedOrder, QuestionOrder, make_order
from hpt.data.preview import show_first
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question, has_answers
from hpt.data.sources import LoadedSource
from hpt.data.training_data import log_what_is_left_out, make_renderer, read_questions, select_questions
from hpt.memory import check_memory
from hpt.model.positions import check_positions
from hpt.rollout import check_rollout_engine
from hpt.support.distributed import World
from hpt.support.errors import DataError
from hpt.support.messages import show
from hpt.verify import Verifier
from hpt.verify.answers import check_answers
from hpt.verify.demonstrations import SAMPLE, remembered_check

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
    def fingerprints(self) -> dict[str, str]:
        """Of the content of each source, by its name."""
        return {source.name: source.fingerprint for source in [*self.sources, *self.held_out]}

    @property
    def example(self) -> Question:
        """The first question with a demonstration, if any has one."""
        return next((question for question in self.questions if question.demonstration), self.questions[0])

    def order(self, config: Config) -> QuestionOrder | MixedOrder:
        """Which of `questions` each step sees."""
        sizes = [len(source.questions) for source in self.sources]
        weights = [source.weight for source in self.sources]
        return make_order(sizes, weights, config.batch.questions, config.seed)


def load_data(config: Config) -> Data:
    """Reads and checks everything a run needs but the weights. Says what is left out."""
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
    if config.gate.needs_demonstrations and not demonstration_count(sources):
        raise DataError("every question with a demonstration is longer than the limits in data")
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
    return Data(sources, held_out, renderer, longest_prompt)


def show_first_question(config: Config, data: Data) -> None:
    """Shows a question that is trained on as the model sees it, with its demonstration where any has one."""
    show(logger, show_first(data.renderer, data.example, all_turns=config.data.loss_on == "all"))


def check_verifiable(config: Config, data: Data, verifier: Verifier) -> None:
    """DataError where the verifier cannot use an answer that this run needs."""
    for source in data.sources if config.needs_answers else []:
        check_answers(verifier, source.questions, source.name)
    for source in data.held_out if config.eval.every and has_answers(data.held_out_questions) else []:
        check_answers(verifier, source.questions, source.name)


def without_wrong_demonstrations(
    config: Config, sources: Sequence[LoadedSource], verifier: Verifier, world: World
) -> list[LoadedSource]:
    """The questions to train on, as `data.wrong_demonstrations` says; how many are wrong is logged in any case."""
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
    if not result.refused:
        return list(sources)
    if config.data.wrong_demonstrations == "error":
        raise DataError(
            f"{result.summary}; data.wrong_demonstrations=drop leaves these questions out, =rollouts only their "
            "demonstrations"
        )
    if keep:
        logger.warning("%s", result.summary)
        return list(sources)
    kept = as_wrong_demonstrations_says(config, sources, result.refused)
    total, left = (sum(len(source.questions) for source in each) for each in (sources, kept))
    fate = "RL alone trains on their questions" if left == total else f"{left:,} of {total:,} questions remain"
    logger.warning(f"{result.summary}. They are left out: {fate}")
    return kept
