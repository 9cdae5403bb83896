"""`hpt eval`: a model, benchmarks or files of questions, and how often it is right."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hpt.config.recipe import load_config
from hpt.config.schema import ColumnsConfig, ModelConfig, PromptConfig, Section, VerifyConfig
from hpt.data.benchmarks import MAX_TOKENS, find_benchmark, load_benchmark, load_file, unknown_benchmark
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.data.readers import FILE_KINDS
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.evaluation.estimates import Estimate, bootstrap_average
from hpt.evaluation.evaluate import SUMMARY, EvalResult, QuestionResult, evaluate, write_json
from hpt.evaluation.tables import benchmark_table, result_tables
from hpt.model.loading import load_model
from hpt.model.positions import check_positions
from hpt.records.files import make_folder
from hpt.rollout import Sampling, TransformersEngine
from hpt.rollout.responses import response_generator
from hpt.support.device import pick_device
from hpt.support.errors import ConfigError, HptError
from hpt.support.quiet import quiet_libraries
from hpt.support.seeds import seed_for
from hpt.support.terminal import print_results
from hpt.training.checkpoint import checkpoints
from hpt.training.run import CONFIG
from hpt.verify import ChoiceVerifier, MathVerifier, Verifier, make_verifier
from hpt.verify.answers import check_answers

FILE_N, FILE_MAX_TOKENS = 8, 1024
PARTIAL = "results.partial.jsonl"
_KINDS = {"math": "mathematics", "boxed": "mathematics, boxed", "choice": "multiple choice"}

SectionKind = TypeVar("SectionKind", bound=Section)


@dataclass(frozen=True)
class Examination:
    """One file or benchmark to be evaluated on.

    name: a benchmark's name, or what tells the file from the others. source: its file or hub name.
    verifier: "math", "boxed", "choice" or "module:function".
    """

    name: str
    source: str
    questions: list[Question]
    verifier: str
    sampling: Sampling
    ks: list[int]

    def settings(self) -> dict[str, Any]:
        return {"data": self.source, "verifier": self.verifier, **asdict(self.sampling)}


def run_eval(options: argparse.Namespace, console: Console) -> int:
    """Evaluates as the command line asks; prints the table and, with --output, writes the results."""
    quiet_libraries()
    device = pick_device(options.device)
    model_path, prompt, verifier = _find_model(options.model)
    changes = {name: getattr(options, name) for name in ("style", "system", "template")}
    given = {name: value for name, value in changes.items() if value is not None}
    exams = _examinations(options, verifier)
    tokenizer = load_tokenizer(model_path)
    if not tokenizer.chat_template and options.style is None and prompt.style == "chat":
        given["style"] = "plain"
        console.print(f"{model_path} has no chat template: its prompts are plain (--style plain)", soft_wrap=True)
    prompt = _section(PromptConfig, prompt.model_dump() | given, "--template")
    renderer = PromptRenderer(tokenizer, prompt, eos_token_ids=generation_ends(model_path))
    longest = {exam.name: max(map(len, renderer.encode_prompts(exam.questions))) for exam in exams}
    needed = {
        f"the longest prompt of {exam.name} and --max-tokens {exam.sampling.max_tokens:,}": longest[exam.name]
        + exam.sampling.max_tokens
        for exam in exams
    }
    check_positions(model_path, needed, console)
    results: dict[str, EvalResult] = {}
    settings = {"model": model_path, "dtype": options.dtype, "seed": options.seed, "prompt": prompt.model_dump()}
    with ExitStack() as stack:
        verifiers = {name: stack.enter_context(_verifier(name)) for name in {exam.verifier: None for exam in exams}}
        for exam in exams:
            check_answers(verifiers[exam.verifier], exam.questions, exam.source)
        model = load_model(model_path, ModelConfig(path=model_path, dtype=options.dtype), device)
        engine = TransformersEngine(model, stop_ids=renderer.stop_ids, batch_size=options.batch_size)
        for exam in exams:
            folder = options.output and (options.output / exam.name if len(exams) > 1 else options.output)
            with _watched(exam, folder, console) as watch:
                result = results[exam.name] = evaluate(
                    exam.questions,
                    _generator(engine, renderer, exam.sampling, options.seed),
                    verifiers[exam.verifier],
                    n=exam.sampling.n,
                    batch_size=max(1, options.batch_size // exam.sampling.n),
                    on_batch=watch,
                )
                if folder:
                    result.write(folder, exam.ks, settings | exam.settings())
    _report(exams, results, settings, options)
    if options.output:
        console.print(f"Results per question: {options.output}", soft_wrap=True)
    return 0


def _report(
    exams: Sequence[Examination], results: dict[str, EvalResult], settings: dict[str, Any], options: argparse.Namespace
) -> None:
    """The table; of several examinations their averages, too, and a summary beside their folders."""
    if len(exams) == 1:
        print_results(result_tables(results[exams[0].name], exams[0].ks, f"{options.model} on {exams[0].name}"))
        return
    averages = _averages(exams, results)
    print_results(benchmark_table(results, averages, options.model))
    if options.output:
        parts = {exam.name: exam.settings() | results[exam.name].summary(exam.ks) for exam in exams}
        numbers = {name: estimate._asdict() for name, estimate in averages.items()}
        write_json(options.output / SUMMARY, {"settings": settings, **numbers, "benchmarks": parts})


def _averages(exams: Sequence[Examination], results: dict[str, EvalResult]) -> dict[str, Estimate]:
    """Over benchmarks, each counting once; those of mathematics and of multiple choice apart, as in the paper."""
    groups: dict[str, list[list[float]]] = {}
    for exam in exams:
        groups.setdefault(exam.verifier, []).append(results[exam.name].shares)
    return {
        f"average, {_KINDS.get(verifier, verifier)}" if len(groups) > 1 else "average": bootstrap_average(shares)
        for verifier, shares in groups.items()
        if len(shares) > 1
    }


# ---- what to evaluate on


def _examinations(options: argparse.Namespace, file_verifier: str) -> list[Examination]:
    """Every file and benchmark of --data, loaded and checked."""
    columns = ColumnsConfig(**options.columns)
    exams = []
    verifier: str
    for name, data in zip(_names(options.data), options.data, strict=True):
        benchmark = find_benchmark(data)
        if benchmark:
            source, questions = load_benchmark(benchmark, options.data_dir, columns, seed=options.seed)
            verifier, n, max_tokens = benchmark.verifier, benchmark.n, MAX_TOKENS
        else:
            source = data
            questions, scoring = load_file(data, columns, seed=options.seed)
            verifier, n, max_tokens = scoring or file_verifier, FILE_N, FILE_MAX_TOKENS
        n = options.n or (1 if options.temperature == 0 else n)
        ks = sorted(set(itertools.chain(*options.k or []))) or [2**power for power in range(n.bit_length())]
        if max(ks) > n:
            raise ConfigError(f"--k {max(ks)}: pass@k needs k <= n, and n is {n} for {name}; see --n")
        sampling = Sampling(n, options.max_tokens or max_tokens, options.temperature, options.top_p)
        exams.append(Examination(name, source, questions[: options.limit], options.verifier or verifier, sampling, ks))
    return exams


def _names(sources: Sequence[str]) -> list[str]:
    """Short names that tell the sources apart: a benchmark's own, and of a path as many last parts as that takes."""
    parts = []
    for source in sources:
        benchmark = find_benchmark(source)
        if not (
            benchmark or "/" in source or "@" in source or Path(source).suffix in FILE_KINDS or Path(source).exists()
        ):
            raise unknown_benchmark(source)
        stem = source.removesuffix(Path(source).suffix) if Path(source).suffix in FILE_KINDS else source
        parts.append([benchmark.name] if benchmark else [part for part in re.split(r"[^\w.+-]+", stem) if part])
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"--data: {', '.join(sources)} are not told apart by their names; each may be named once")


def _verifier(name: str) -> Verifier:
    if name == "choice":
        return ChoiceVerifier()
    if name in ("math", "boxed"):
        return MathVerifier(boxed=name == "boxed")
    what = f"--verifier {name}: math, boxed, choice or a function"
    return make_verifier(_section(VerifyConfig, {"function": name}, what))


def _section(kind: type[SectionKind], values: dict[str, Any], what: str) -> SectionKind:
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(f"{what}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _find_model(model: str) -> tuple[str, PromptConfig, str]:
    """The weights' folder or hub name, and the prompt and verifier it was trained with where a run tells."""
    folder = Path(model)
    if (folder / CONFIG).is_file():
        found = checkpoints(folder)
        if not found:
            raise HptError(f"{model}: this run has no checkpoint yet")
        model, recipe = str(found[-1]), folder / CONFIG
    else:
        recipe = folder.resolve().parent.parent / CONFIG
    if not recipe.is_file():
        return model, PromptConfig(), "math"
    config = load_config(recipe)
    return model, config.prompt, config.verify.function or ("boxed" if config.verify.boxed else "math")


# ---- the evaluation


def _generator(
    engine: TransformersEngine, renderer: PromptRenderer, sampling: Sampling, seed: int
) -> Callable[[Sequence[Question]], list[Any]]:
    """Every batch draws from a seed of its own."""
    batches = itertools.count()

    def generate(questions: Sequence[Question]) -> list[Any]:
        return response_generator(engine, renderer, sampling, seed_for(seed, next(batches), "eval"))(questions)

    return generate


@contextmanager
def _watched(
    exam: Examination, folder: Path | None, console: Console
) -> Iterator[Callable[[list[QuestionResult]], None]]:
    """Takes the results batch by batch: into a bar, on a terminal, and into PARTIAL, for the case of an interruption.

    PARTIAL is removed at the end, when the whole results are written.
    """
    bar = Progress(
        TextColumn(exam.name),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(exam.name, total=len(exam.questions), score="")
    seen: list[QuestionResult] = []
    partial = folder / PARTIAL if folder else None
    if partial:
        make_folder(partial.parent)
        partial.unlink(missing_ok=True)

    def watch(batch: list[QuestionResult]) -> None:
        seen.extend(batch)
        right = sum(result.correct for result in seen) / (len(seen) * exam.sampling.n)
        bar.update(task, completed=len(seen), score=f"{right:.1%}")
        if partial:
            _append(partial, batch)

    try:
        with bar:
            yield watch
    except BaseException:
        if partial and seen:
            console.print(f"Results so far, {len(seen)} of {len(exam.questions)} questions: {partial}", soft_wrap=True)
        raise
    if partial:
        partial.unlink()


def _append(path: Path, batch: Sequence[QuestionResult]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(result.line() for result in batch)
    except OSError as error:
        raise HptError(f"cannot write {path}: {error.strerror or error}") from error
