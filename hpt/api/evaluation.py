"""Evaluates a model on several sources of questions, with progress and partial results."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt.api.evaluation_tasks import (
    EvaluationTask,
    average_scores,
    check_lengths,
    find_model,
    load_tasks,
    make_section,
    named_verifier,
    prompt_settings,
)
from hpt.config.sections.evaluation import EvaluationSettings
from hpt.config.sections.model import ModelConfig
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.evaluation.evaluate import SUMMARY, EvalResult, QuestionResult, evaluate, write_json
from hpt.evaluation.statistics import Estimate
from hpt.model.loading import load_model
from hpt.rollout import Rollout, RolloutEngine, Sampling, TransformersEngine
from hpt.rollout.responses import response_generator
from hpt.support.device import pick_device
from hpt.support.files import append_to_file, make_folder
from hpt.support.progress import Progress
from hpt.support.quiet import quiet_libraries
from hpt.support.seeds import seed_for
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
    All data and settings are checked before the model is loaded.
    """
    quiet_libraries()
    device = pick_device(settings.device)
    model = find_model(name)
    tasks = load_tasks(sources, settings, model.verifier)
    tokenizer = load_tokenizer(model.path)
    prompt = prompt_settings(model.prompt, settings, has_chat_template=bool(tokenizer.chat_template))
    if prompt.style != model.prompt.style and settings.style is None:
        logger.info(f"{model.path} has no chat template: its prompts are plain (--style plain)")
    renderer = PromptRenderer(tokenizer, prompt, eos_token_ids=generation_ends(model.path))
    check_lengths(model.path, tasks, renderer)
    recorded = {"model": model.path, "dtype": settings.dtype, "seed": settings.seed, "prompt": prompt.model_dump()}
    results: dict[str, EvalResult] = {}
    with ExitStack() as stack:
        names = dict.fromkeys(task.verifier for task in tasks)
        verifiers = {name: stack.enter_context(named_verifier(name)) for name in names}
        for task in tasks:
            check_answers(verifiers[task.verifier], task.questions, task.source)
        loaded = load_model(model.path, ModelConfig(path=model.path, dtype=settings.dtype), device)
        engine = TransformersEngine(loaded, stop_ids=renderer.stop_ids, batch_size=settings.batch_size)
        for task in tasks:
            folder = output / task.name if output and len(tasks) > 1 else output
            with _showing_progress(task, folder) as on_batch:
                result = results[task.name] = evaluate(
                    task.questions,
                    _generator(engine, renderer, task.sampling, settings.seed),
                    verifiers[task.verifier],
                    n=task.sampling.n,
                    batch_size=max(1, settings.batch_size // task.sampling.n),
                    on_batch=on_batch,
                )
                if folder:
                    result.write(folder, task.ks, recorded | task.settings())
    averages = average_scores(tasks, results)
    if output and len(tasks) > 1:
        parts = {task.name: task.settings() | results[task.name].summary(task.ks) for task in tasks}
        numbers = {name: estimate._asdict() for name, estimate in averages.items()}
        write_json(output / SUMMARY, {"settings": recorded, **numbers, "benchmarks": parts})
    return Evaluation(tasks, results, averages)


def _generator(
    engine: RolloutEngine, renderer: PromptRenderer, sampling: Sampling, seed: int
) -> Callable[[Sequence[Question]], list[list[Rollout]]]:
    """Samples the responses to a batch of questions. Each batch has its own seed."""
    batches = itertools.count()

    def generate(questions: Sequence[Question]) -> list[list[Rollout]]:
        return response_generator(engine, renderer, sampling, seed_for(seed, next(batches), "eval"))(questions)

    return generate


@contextmanager
def _showing_progress(task: EvaluationTask, folder: Path | None) -> Iterator[Callable[[list[QuestionResult]], None]]:
    """Yields a function for the results of each batch: it moves a progress bar and appends them to PARTIAL.

    folder: where PARTIAL is; None for none. It is removed after the block, and kept where the block is interrupted.
    """
    seen: list[QuestionResult] = []
    partial = folder / PARTIAL if folder else None
    if partial:
        make_folder(partial.parent)
        partial.unlink(missing_ok=True)

    with Progress(f"{task.name}: question", len(task.questions)) as progress:

        def show(batch: list[QuestionResult]) -> None:
            seen.extend(batch)
            right = sum(result.correct for result in seen) / (len(seen) * task.sampling.n)
            progress.update(len(seen), f"right {right:.1%}")
            if partial:
                append_to_file(partial, "".join(result.line() for result in batch).encode())

        try:
            yield show
        except BaseException:
            if partial and seen:
                logger.info(f"Results so far, {len(seen)} of {len(task.questions)} questions: {partial}")
            raise
    if partial:
        partial.unlink()
