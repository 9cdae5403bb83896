"""Evaluates a model on several sources of questions, with progress and partial results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt.api.evaluation_engine import choose_engine, make_engine, model_dtype
from hpt.api.evaluation_tasks import (
    EvaluationTask,
    average_scores,
    find_model,
    load_tasks,
    longest_sequence,
    make_section,
    named_verifier,
    prompt_settings,
)
from hpt.config.sections.evaluation import EvaluationSettings
from hpt.data.prompt import PromptRenderer
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.evaluation.evaluate import SUMMARY, EvalResult, QuestionResult, evaluate, write_json
from hpt.evaluation.statistics import Estimate
from hpt.rollout.responses import response_generator
from hpt.support.device import pick_device
from hpt.support.files import append_to_file, make_folder
from hpt.support.progress import Progress
from hpt.support.quiet import quiet_libraries
from hpt.support.seeds import seed_for
from hpt.support.stopping import signals_interrupt
from hpt.verify.answers import check_answers

PARTIAL = "results.partial.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The tasks of an evaluation, their results by name, and averages over tasks of one kind."""

    tasks: list[EvaluationTask]
    results: dict[str, EvalResult]
    averages: dict[str, Estimate]


def evaluation_settings(**settings: Any) -> EvaluationSettings:
    """ConfigError, naming the field, where a value is not allowed."""
    return make_section(EvaluationSettings, settings, "evaluation")


def evaluate_sources(
    name: str, sources: Sequence[str], settings: EvaluationSettings, output: Path | None
) -> Evaluation:
    """Evaluates the model `name` on each source.

    output: where the results are written, of several sources in a folder for each.
    All data and settings are checked before the model is loaded. Then SIGTERM and SIGHUP are KeyboardInterrupts.
    """
    quiet_libraries()
    device = pick_device(settings.device)
    model = find_model(name)
    kind, dtype = choose_engine(model.path, settings, device), model_dtype(model.path, settings, device)
    tasks = load_tasks(sources, settings, model.verifier)
    tokenizer = load_tokenizer(model.path)
    prompt = prompt_settings(model.prompt, settings, has_chat_template=bool(tokenizer.chat_template))
    if prompt.style != model.prompt.style and settings.style is None:
        logger.info(f"{model.path} has no chat template: its prompts are plain (--style plain)")
    renderer = PromptRenderer(tokenizer, prompt, eos_token_ids=generation_ends(model.path))
    longest = longest_sequence(model.path, tasks, renderer)
    recorded = {
        "model": model.path,
        "engine": kind,
        "dtype": dtype,
        "seed": settings.seed,
        "prompt": prompt.model_dump(),
    }
    results: dict[str, EvalResult] = {}
    with ExitStack() as stack:
        stack.enter_context(signals_interrupt())
        names = dict.fromkeys(task.verifier for task in tasks)
        verifiers = {name: stack.enter_context(named_verifier(name)) for name in names}
        for task in tasks:
            check_answers(verifiers[task.verifier], task.questions, task.source)
        engine = stack.enter_context(
            closing(
                make_engine(
                    kind,
                    model.path,
                    settings,
                    device,
                    dtype=dtype,
                    stop_ids=renderer.stop_ids,
                    longest_sequence=longest,
                )
            )
        )
        for task in tasks:
            folder = output / task.name if output and len(tasks) > 1 else output
            generate = response_generator(engine, renderer, task.sampling, seed_for(settings.seed, 0, "eval"))
            with _showing_progress(task, folder) as show:
                result = results[task.name] = evaluate(
                    task.questions, generate, verifiers[task.verifier].mark, n=task.sampling.n, on_question=show
                )
                if folder:
                    result.write(folder, task.ks, recorded | task.settings())
    averages = average_scores(tasks, results)
    if output and len(tasks) > 1:
        parts = {task.name: task.settings() | results[task.name].summary(task.ks) for task in tasks}
        numbers = {name: estimate._asdict() for name, estimate in averages.items()}
        write_json(output / SUMMARY, {"settings": recorded, **numbers, "benchmarks": parts})
    return Evaluation(tasks, results, averages)


@contextmanager
def _showing_progress(task: EvaluationTask, folder: Path | None) -> Iterator[Callable[[QuestionResult], None]]:
    """Yields a function for the result of each question: it moves a progress bar and appends the result to PARTIAL.

    folder: where PARTIAL is; None for none. It is removed after the block, and kept where the block is interrupted.
    """
    done = correct = 0
    partial = folder / PARTIAL if folder else None
    if partial:
        make_folder(partial.parent)
        partial.unlink(missing_ok=True)

    with Progress(f"{task.name}: question", len(task.questions)) as progress:

        def show(result: QuestionResult) -> None:
            nonlocal done, correct
            done, correct = done + 1, correct + result.correct
            progress.update(done, f"right {correct / (done * task.sampling.n):.1%}")
            if partial:
                append_to_file(partial, result.line().encode())

        try:
            yield show
        except BaseException:
            if partial and done:
                logger.info(f"Results so far, {done} of {len(task.questions)} questions: {partial}")
            raise
    if partial:
        partial.unlink()
