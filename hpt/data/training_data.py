"""The questions that a recipe names, read and checked without the model's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from hpt.config.schema import Config
from hpt.config.sections.rewards import VERIFIER
from hpt.data.columns import Demonstrations, MissingColumn
from hpt.data.demonstrations import as_missing_demonstrations_says, demonstration_count, undemonstrated
from hpt.data.prompt import PromptRenderer
from hpt.data.selection import Selection, select_by_length
from hpt.data.sources import LoadedSource, load_sources
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.support.errors import DataError

logger = logging.getLogger(__name__)


def read_questions(config: Config) -> tuple[list[LoadedSource], list[LoadedSource]]:
    """The sources of `data.train` and of `data.eval`. DataError as in `load_questions`.

    Demonstrations that nothing trains on are left out.
    """
    train = _training_sources(config)
    if not config.gate.needs_demonstrations:
        train = [replace(source, questions=[*map(undemonstrated, source.questions)]) for source in train]
    with _explaining({"answer": _why_eval_answers(config)}):
        held_out = load_sources(
            config.data.eval_sources,
            config.data.columns,
            demonstrations="optional",
            need_answer=config.eval.every > 0 and config.gate.reads == VERIFIER,
        )
    return train, held_out


def _training_sources(config: Config) -> list[LoadedSource]:
    """The sources of `data.train`, as `data.missing_demonstrations` says."""

    def read(demonstrations: Demonstrations) -> list[LoadedSource]:
        with _explaining({"answer": _why_answers(config), "demonstration": _why_demonstrations(config)}):
            return load_sources(
                config.data.train_sources,
                config.data.columns,
                demonstrations=demonstrations,
                need_answer=config.needs_answers,
            )

    missing = config.data.missing_demonstrations
    if not config.gate.needs_demonstrations:
        return read("optional")
    if missing == "error":
        return read("required")
    sources = read("some")
    if demonstration_count(sources):
        return as_missing_demonstrations_says(config, sources)
    try:
        return read("required")  # says where demonstrations were looked for
    except DataError as error:
        raise DataError(f"No question has a demonstration (data.missing_demonstrations={missing}): {error}") from error


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
    return (
        f"This method trains on demonstrations (gate.kind={config.gate.kind}); RL alone does not: method=grpo. Where "
        "only some questions have one: data.missing_demonstrations=rollouts or =drop"
    )


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
