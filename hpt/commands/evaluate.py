"""`hpt eval`: how often a model is right on benchmarks or files of questions."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hpt.commands.arguments import (
    CommandParser,
    non_negative_float,
    non_negative_int,
    positive_int,
    positive_ints,
    share,
)
from hpt.support.files import append_to_file, make_folder
from hpt.support.terminal import print_results

if TYPE_CHECKING:
    from hpt.commands.evaluation_tasks import EvaluationTask
    from hpt.data.prompt import PromptRenderer
    from hpt.data.questions import Question
    from hpt.evaluation.evaluate import EvalResult, QuestionResult
    from hpt.rollout import Rollout, RolloutEngine, Sampling

HELP = "avg@n and pass@k of a model on benchmarks or files of questions"
PARTIAL = "results.partial.jsonl"

_EPILOG = """
benchmarks, with the responses per question that are usual in the literature:
  AIME24, AIME25, AMC (32); MATH-500, Minerva, OlympiadBench (1); GPQA-Diamond, ARC-c (1, multiple choice)
  Local files come first: NAME/test.json, NAME/NAME.json or NAME.json (or .jsonl, .csv, .parquet) in --data-dir or
  $HPT_DATA_DIR, in their published layouts. Without one, the questions come from the Hugging Face hub.

examples:
  hpt eval runs/demo --data runs/demo/eval.jsonl --n 64
  hpt eval Qwen/Qwen2.5-Math-1.5B --data AIME24 --data MATH-500 --data-dir benchmarks --output results/base
  hpt compare results/base results/trained
"""


def add_arguments(parser: CommandParser) -> None:
    parser.description = "How often a model is right: avg@n and unbiased pass@k, with 95% intervals over questions."
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder or name, a checkpoint, or a run's folder")
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DATA",
        help="a benchmark, a .jsonl, .json, .csv or .parquet file with prompt and answer, or NAME[:CONFIG]@SPLIT on "
        "the Hugging Face hub; may be given several times",
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder of local benchmark files (default: $HPT_DATA_DIR)"
    )
    parser.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="FIELD=NAME,...",
        help="a file's columns for prompt, answer, id and grade (default: those of known layouts)",
    )
    parser.add_argument(
        "--n",
        type=positive_int,
        help="responses per question (default: 8; for benchmarks see below; 1 at temperature 0)",
    )
    parser.add_argument(
        "--k",
        type=positive_ints,
        nargs="+",
        action="extend",
        metavar="K",
        help="the k of pass@k, separated by commas or spaces, at most n (default: 1,2,4,... up to n)",
    )
    parser.add_argument("--temperature", type=non_negative_float, default=0.6, help="0 is greedy (default: 0.6)")
    parser.add_argument("--top-p", type=share, default=0.95, help="default: 0.95")
    parser.add_argument(
        "--max-tokens", type=positive_int, help="longest response, in tokens (default: 1024, for benchmarks 8192)"
    )
    parser.add_argument("--batch-size", type=positive_int, default=64, help="responses generated at once (default: 64)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N questions of each")
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, help="for sampling and the order of GPQA's choices (default: 0)"
    )
    parser.add_argument(
        "--style",
        choices=["chat", "plain"],
        help="prompt style (default: the run's, else chat where the tokenizer has a chat template)",
    )
    parser.add_argument("--system", help="system message of a chat prompt")
    parser.add_argument("--template", help="text around the question, with {question} in it")
    parser.add_argument(
        "--verifier",
        metavar="NAME",
        help="math (math-verify), boxed (math-verify, boxed answers only), choice (a letter), or MODULE:FUNCTION, "
        "(response, answer) -> score (default: a benchmark's own; for a file the run's, else math)",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for results.jsonl and summary.json; with several --data, a folder in it for each",
    )


def _columns(text: str) -> dict[str, str]:
    columns = {}
    for part in text.split(","):
        field, _, name = part.partition("=")
        if field not in ("prompt", "answer", "id", "grade") or not name:
            raise argparse.ArgumentTypeError(
                f"must be FIELD=NAME, where FIELD is prompt, answer, id or grade, got {text!r}"
            )
        columns[field] = name
    return columns


def run(options: argparse.Namespace, console: Console) -> int:
    from hpt.commands.evaluation_tasks import check_lengths, find_model, load_tasks, named_verifier, prompt_settings
    from hpt.config.sections.model import ModelConfig
    from hpt.data.prompt import PromptRenderer
    from hpt.data.tokenizer import generation_ends, load_tokenizer
    from hpt.evaluation.evaluate import evaluate
    from hpt.model.loading import load_model
    from hpt.rollout import TransformersEngine
    from hpt.support.device import pick_device
    from hpt.support.quiet import quiet_libraries
    from hpt.verify.answers import check_answers

    quiet_libraries()
    device = pick_device(options.device)
    model = find_model(options.model)
    tasks = load_tasks(options, model.verifier)
    tokenizer = load_tokenizer(model.path)
    prompt = prompt_settings(model.prompt, options, has_chat_template=bool(tokenizer.chat_template))
    if prompt.style != model.prompt.style and options.style is None:
        console.print(f"{model.path} has no chat template: its prompts are plain (--style plain)", soft_wrap=True)
    renderer = PromptRenderer(tokenizer, prompt, eos_token_ids=generation_ends(model.path))
    check_lengths(model.path, tasks, renderer, console)
    settings = {"model": model.path, "dtype": options.dtype, "seed": options.seed, "prompt": prompt.model_dump()}
    results: dict[str, EvalResult] = {}
    with ExitStack() as stack:
        names = dict.fromkeys(task.verifier for task in tasks)
        verifiers = {name: stack.enter_context(named_verifier(name)) for name in names}
        for task in tasks:
            check_answers(verifiers[task.verifier], task.questions, task.source)
        loaded = load_model(model.path, ModelConfig(path=model.path, dtype=options.dtype), device)
        engine = TransformersEngine(loaded, stop_ids=renderer.stop_ids, batch_size=options.batch_size)
        for task in tasks:
            folder = options.output / task.name if options.output and len(tasks) > 1 else options.output
            with _showing_progress(task, folder, console) as on_batch:
                result = results[task.name] = evaluate(
                    task.questions,
                    _generator(engine, renderer, task.sampling, options.seed),
                    verifiers[task.verifier],
                    n=task.sampling.n,
                    batch_size=max(1, options.batch_size // task.sampling.n),
                    on_batch=on_batch,
                )
                if folder:
                    result.write(folder, task.ks, settings | task.settings())
    if len(tasks) == 1:
        _print_result(tasks[0], results[tasks[0].name], options.model)
    else:
        _print_results(tasks, results, settings, options)
    if options.output:
        console.print(f"Results per question: {options.output}", soft_wrap=True)
    return 0


def _generator(
    engine: RolloutEngine, renderer: PromptRenderer, sampling: Sampling, seed: int
) -> Callable[[Sequence[Question]], list[list[Rollout]]]:
    """Samples the responses to a batch of questions. Each batch has its own seed."""
    from hpt.rollout.responses import response_generator
    from hpt.support.seeds import seed_for

    batches = itertools.count()

    def generate(questions: Sequence[Question]) -> list[list[Rollout]]:
        return response_generator(engine, renderer, sampling, seed_for(seed, next(batches), "eval"))(questions)

    return generate


@contextmanager
def _showing_progress(
    task: EvaluationTask, folder: Path | None, console: Console
) -> Iterator[Callable[[list[QuestionResult]], None]]:
    """Yields a function for the results of each batch: it moves a progress bar and appends them to PARTIAL.

    folder: where PARTIAL is; None for none. It is removed after the block, and kept where the block is interrupted.
    """
    bar = Progress(
        TextColumn(task.name),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar_task = bar.add_task(task.name, total=len(task.questions), score="")
    seen: list[QuestionResult] = []
    partial = folder / PARTIAL if folder else None
    if partial:
        make_folder(partial.parent)
        partial.unlink(missing_ok=True)

    def show(batch: list[QuestionResult]) -> None:
        seen.extend(batch)
        right = sum(result.correct for result in seen) / (len(seen) * task.sampling.n)
        bar.update(bar_task, completed=len(seen), score=f"{right:.1%}")
        if partial:
            append_to_file(partial, "".join(result.line() for result in batch).encode())

    try:
        with bar:
            yield show
    except BaseException:
        if partial and seen:
            console.print(f"Results so far, {len(seen)} of {len(task.questions)} questions: {partial}", soft_wrap=True)
        raise
    if partial:
        partial.unlink()


def _print_result(task: EvaluationTask, result: EvalResult, model: str) -> None:
    from hpt.evaluation.tables import result_tables

    print_results(result_tables(result, task.ks, f"{model} on {task.name}"))


def _print_results(
    tasks: Sequence[EvaluationTask],
    results: Mapping[str, EvalResult],
    settings: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """Prints the table of several tasks with their averages, and writes the summary beside their folders."""
    from hpt.commands.evaluation_tasks import average_scores
    from hpt.evaluation.evaluate import SUMMARY, write_json
    from hpt.evaluation.tables import benchmark_table

    averages = average_scores(tasks, results)
    print_results(benchmark_table(results, averages, options.model))
    if options.output:
        parts = {task.name: task.settings() | results[task.name].summary(task.ks) for task in tasks}
        numbers = {name: estimate._asdict() for name, estimate in averages.items()}
        write_json(options.output / SUMMARY, {"settings": settings, **numbers, "benchmarks": parts})
