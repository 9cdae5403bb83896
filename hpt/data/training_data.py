"""The questions that a recipe names, read and checked without the model's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from hpt.config.schema import Config
from hpt.config.sections.rewards import VERIFIER
from hpt.data.columns import MissingColumn
from hpt.data.prompt import PromptRenderer
from hpt.data.selection import Selection, select_by_length
from hpt.data.sources import LoadedSource, load_sources, without_demonstration
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.support.errors import DataError

logger = logging.getLogger(__name__)


def read_questions(config: Config) -> tuple[list[LoadedSource], list[LoadedSource]]:
    """The sources of `data.train` and of `data.eval`. DataError as in `load_questions`.

    Demonstrations that nothing trains on are left out.
    """
    needs_demonstrations = config.gate.needs_demonstrations
    with _explaining({"answer": _why_answers(config), "demonstration": _why_demonstrations(config)}):
        train = load_sources(
            config.data.train_sources,
            config.data.columns,
            need_demonstration=needs_demonstrations,
            need_answer=config.needs_answers,
            some_without=config.data.missing_demonstrations != "error",
        )
    if needs_demonstrations:
        train = _as_missing_demonstrations_says(config, train)
    else:
        train = [
            replace(source, questions=[without_demonstration(question) for question in source.questions])
            for source in train
        ]
    with _explaining({"answer": _why_eval_answers(config)}):
        held_out = load_sources(
            config.data.eval_sources,
            config.data.columns,
            need_demonstration=False,
            need_answer=config.eval.every > 0 and config.gate.reads == VERIFIER,
        )
    return train, held_out


@contextmanager
def _explaining(reasons: Mapping[str, str]) -> Iterator[None]:
    """Adds to the error that a field has no column why one is needed, and what to do without. reasons: by field."""
    try:
        yield
    except MissingColumn as error:
        if error.field not in reasons:
            raise
        raise DataError(f"{error}.\n{reasons[error.field]}") from error


def _why_answers(config: Config) -> str:
    """Why training needs answers, and what to change to train without."""
    lines = []
    if not config.rewards:
        lines.append("The reward is the verifier's score. To train without answers, list functions in rewards")
    elif config.rewarded_by_verifier:
        lines.append("rewards lists verifier, whose score needs answers. To train without them, leave it out")
    if config.gated_by_verifier:
        gate = "The gate asks the verifier which rollouts are right"
        lines.append(f"{gate}. {_let_gate_read(config)}, or train by RL alone: method=grpo")
    return "\n".join(lines)


def _why_demonstrations(config: Config) -> str:
    return f"This method trains on demonstrations (gate.kind={config.gate.kind}); RL alone does not: method=grpo"


def _as_missing_demonstrations_says(config: Config, sources: Sequence[LoadedSource]) -> list[LoadedSource]:
    """The sources without the questions that lack a demonstration, or with them; says how many there are."""
    questions = [question for source in sources for question in source.questions]
    missing = sum(question.demonstration is None for question in questions)
    if not missing:
        return list(sources)
    if missing == len(questions):
        raise DataError(f"none of the {missing:,} questions has a demonstration.\n{_why_demonstrations(config)}")
    if config.keeps_questions_without_demonstration:
        logger.info("%s of %s questions have no demonstration: RL alone trains on them", missing, len(questions))
        return list(sources)
    logger.info("%s of %s questions have no demonstration: they are left out", missing, len(questions))
    kept = []
    for source in sources:
        demonstrated = [question for question in source.questions if question.demonstration is not None]
        if not demonstrated:
            raise DataError(f"{source.name}: no question has a demonstration, and data.missing_demonstrations is drop")
        kept.append(replace(source, questions=demonstrated))
    return kept


def _why_eval_answers(config: Config) -> str:
    return (
        f"Evaluations (eval.every={config.eval.every}) ask the verifier which responses are right. "
        f"{_let_gate_read(config)}, or do not evaluate: eval.every=0"
    )


def _let_gate_read(config: Config) -> str:
    names = [name for name in config.reward_weights if name != VERIFIER]
    name = names[0] if names else "NAME"
    return f"To let a reward function say so: gate.reads={name} gate.threshold=VALUE"


def make_renderer(config: Config) -> PromptRenderer:
    """What turns the questions of a run into tokens."""
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=config.model.trust_remote_code)
    return PromptRenderer(tokenizer, config.prompt, eos_token_ids=generation_ends(config.model.path))


def select_questions(config: Config, source: LoadedSource, renderer: PromptRenderer) -> Selection:
    """The questions of a source that are within the limits of `data`, which may be none."""
    return select_by_length(
        source.questions,
        renderer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_demonstration_tokens=config.max_demonstration_tokens,
        all_turns=config.data.loss_on == "all" and config.gate.needs_demonstrations,
        on_long=config.data.too_long,
        source=source.name,
    )


def log_what_is_left_out(source: LoadedSource, renderer: PromptRenderer) -> None:
    """Says which columns and tools of a source reach no prompt."""
    if source.unread:
        logger.info("%s: these columns are for reward functions only: %s", source.name, ", ".join(source.unread))
    if renderer.ignores_tools and any(question.tools for question in source.questions):
        logger.warning("%s has tools, and the prompt leaves them out: no chat template shows them", source.name)
