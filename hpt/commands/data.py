"""`hpt data`: what a run would see of its data, without the model's weights."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from hpt.commands.arguments import CommandParser, non_negative_int
from hpt.support.errors import DataError, HptError
from hpt.support.terminal import plain_table, print_results

if TYPE_CHECKING:
    from hpt.config.schema import Config
    from hpt.data.prompt import PromptRenderer
    from hpt.data.selection import Selection
    from hpt.data.sources import LoadedSource

HELP = "what a run would see of its data: counts, lengths, duplicates, wrong answers, rendered rows"
UNUSABLE = 1

logger = logging.getLogger(__name__)


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
What a run would see of its data: counts, lengths in tokens, duplicates, answers that the verifier cannot parse,
demonstrations whose final answer it refuses, columns that nothing reads, and the first rows of step 1 with the tokens
that are trained. Reads the data and the tokenizer, not the model's weights. Exit code 1 if a run would refuse the data.
"""
    parser.epilog = """\
examples:
  hpt data my-recipe.yaml
  hpt data my-recipe.yaml data.loss_on=all --rows 5 --check 0
"""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--rows", type=non_negative_int, default=2, help="rows to show (default: 2)")
    parser.add_argument(
        "--check",
        type=non_negative_int,
        default=2000,
        metavar="N",
        help="answers and demonstrations to verify at most, evenly spaced over the data (default: 2000; 0: none); as "
        "in a run, all demonstrations unless data.wrong_demonstrations is keep",
    )


def run(options: argparse.Namespace) -> int:
    from hpt.config.recipe import load_config
    from hpt.config.stages import stages_of
    from hpt.support.quiet import quiet_libraries

    logger.info(f"Reading the data of {options.recipe}")
    quiet_libraries()
    stages = stages_of(load_config(options.recipe, options.settings))
    problems = []
    for number, stage in enumerate(stages, start=1):
        if len(stages) > 1:
            title = f"Stage {number} of {len(stages)} ({stage.config.method}), steps {stage.first} to {stage.last}"
            print_results(Text(title, style="bold"))
        problems += _describe(stage.config, rows=options.rows, check=options.check)
    for problem in problems:
        print_results(Text(f"A run would stop: {problem}", style="bold red"))
    return UNUSABLE if problems else 0


def _describe(config: Config, *, rows: int, check: int) -> list[str]:
    """Prints what a run, or a stage of it, sees; returns the reasons for which it would refuse the data."""
    from hpt.data.training_data import make_renderer, read_questions, select_questions

    try:
        train, held_out = read_questions(config)
        renderer = make_renderer(config)
    except HptError as error:
        if config.prepare is None:
            raise
        hint = f"If it is missing: this recipe's prepare ({config.prepare}) makes it, and hpt train runs that first"
        raise HptError(f"{error}\n{hint}") from error
    lenient = config.model_copy(update={"data": config.data.model_copy(update={"too_long": "drop"})})
    selections = [select_questions(lenient, source, renderer) for source in train]
    print_results(
        _counts(train, held_out, selections), "", *_lengths(config, selections), *_notes(train, held_out, renderer)
    )
    fitting = [
        replace(source, questions=selection.questions) for source, selection in zip(train, selections, strict=True)
    ]
    checked, problems, trained = _verified(config, train, held_out, fitting, check)
    print_results(*checked)
    if config.data.too_long == "error" and any(selection.dropped for selection in selections):
        problems.append("questions are too long, and data.too_long is error")
    problems += [
        f"{source.name}: every question is longer than the limits in data" for source in fitting if not source.questions
    ]
    if all(source.questions for source in trained):
        print_results(*_first_rows(config, trained, renderer, rows))
    return problems


def _counts(train: list[LoadedSource], held_out: list[LoadedSource], selections: list[Selection]) -> RenderableType:
    several = len(train) > 1
    headers = ["questions", "answers", "demonstrations", "too long", *(["share"] if several else [])]
    table = plain_table("Questions", "source", *headers)
    weights = sum(source.weight for source in train)
    for source, selection in zip(train, selections, strict=True):
        share = [f"{source.weight / weights:.1%}"] if several else []
        table.add_row(*_row(source, f"{selection.dropped:,}"), *share)
    for source in held_out:
        table.add_row(*_row(source, "-", " (eval)"), *([""] if several else []))
    return table


def _row(source: LoadedSource, too_long: str, mark: str = "") -> list[str]:
    answers = sum(question.answer is not None for question in source.questions)
    demonstrations = sum(question.demonstration is not None for question in source.questions)
    numbers = [f"{number:,}" for number in (len(source.questions), answers, demonstrations)]
    return [source.name + mark, *numbers, too_long]


def _lengths(config: Config, selections: list[Selection]) -> list[str]:
    from hpt.data.statistics import histogram

    lengths = [pair for selection in selections for pair in selection.lengths]
    demonstrations = [length for _, length in lengths if length]
    return [
        *histogram("Prompts", [length for length, _ in lengths], config.data.max_prompt_tokens),
        *histogram("Demonstrations", demonstrations, config.max_demonstration_tokens),
        "",
    ]


def _notes(train: list[LoadedSource], held_out: list[LoadedSource], renderer: PromptRenderer) -> list[str]:
    from hpt.data.statistics import in_both, repeated

    questions = [question for source in train for question in source.questions]
    asked = [question for source in held_out for question in source.questions]
    notes = [f"Questions with the prompt of an earlier one: {repeated(questions):,}"]
    if asked:
        notes.append(f"Held-out questions with the prompt of a training question: {in_both(questions, asked):,}")
    for source in train:
        if source.unread:
            notes.append(f"{source.name}: columns for reward functions only: {', '.join(source.unread)}")
    if any(question.tools for question in questions) and renderer.ignores_tools:
        notes.append("The data has tools, and the prompt leaves them out: no chat template shows them")
    return notes


def _verified(
    config: Config, train: list[LoadedSource], held_out: list[LoadedSource], fitting: list[LoadedSource], check: int
) -> tuple[list[str], list[str], list[LoadedSource]]:
    """What the verifier says about answers and demonstrations, the reasons for which a run would stop, and what is
    trained on.

    fitting: the questions of `train` that are not too long.
    """
    from hpt.data.demonstrations import as_wrong_demonstrations_says, demonstration_count
    from hpt.verify import make_verifier
    from hpt.verify.answers import unusable_answers
    from hpt.verify.demonstrations import check_demonstrations, evenly_spaced

    lines, problems = [], []
    wrong = config.data.wrong_demonstrations
    verifier = make_verifier(config.verify)
    if check == 0 or not any(question.answer for source in [*train, *held_out] for question in source.questions):
        if check == 0 and wrong in ("drop", "rollouts"):
            lines.append(f"Not verified: the rows may show what data.wrong_demonstrations={wrong} leaves out")
        return lines, [], fitting
    with verifier:
        parts = [(source, config.needs_answers) for source in train]
        parts += [(source, config.eval.every > 0) for source in held_out]
        for source, needed in parts:
            chosen = evenly_spaced([each for each in source.questions if each.answer is not None], check)
            unusable = unusable_answers(verifier, chosen)
            lines.append(
                f"{source.name}: answers that the verifier cannot parse: {len(unusable):,} of {len(chosen):,} checked"
            )
            if unusable:
                lines[-1] += f", first {unusable[0].named}: {unusable[0].answer!r}"
            if unusable and needed:
                problems.append(f"{source.name} has answers that the verifier cannot parse")
        questions = [question for source in fitting for question in source.questions]
        result = check_demonstrations(verifier, questions, limit=check if wrong == "keep" else None)
    if result.checked:
        lines.append(result.summary[0].upper() + result.summary[1:])
    if result.refused and wrong == "error":
        problems.append("the verifier refuses demonstrations, and data.wrong_demonstrations is error")
    if not result.refused or wrong not in ("drop", "rollouts"):
        return lines, problems, fitting
    try:
        trained = as_wrong_demonstrations_says(config, fitting, result.refused)
    except DataError as error:
        return lines, [*problems, str(error)], []
    left = sum(len(source.questions) for source in trained)
    lines.append(
        f"data.wrong_demonstrations={wrong} leaves them out: {left:,} of {len(questions):,} questions remain, "
        f"{demonstration_count(trained):,} of them with a demonstration"
    )
    return lines, problems, trained


def _first_rows(
    config: Config, trained: list[LoadedSource], renderer: PromptRenderer, rows: int
) -> list[RenderableType]:
    """The first rows of step 1."""
    if not trained:
        return []
    from hpt.data.order import make_order
    from hpt.data.preview import show_row

    questions = [question for source in trained for question in source.questions]
    order = make_order(
        [len(source.questions) for source in trained],
        [source.weight for source in trained],
        config.batch.questions,
        config.seed,
    )
    shown: list[RenderableType] = []
    for index in order.batch(1)[:rows]:
        shown += ["", show_row(renderer, questions[index], all_turns=config.data.loss_on == "all")]
    return shown
