"""What an evaluation consists of: the model, and a task for each benchmark or file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from hpt.config.recipe import load_config
from hpt.config.sections.data import PromptConfig
from hpt.config.sections.evaluation import EvaluationSettings
from hpt.config.sections.model import ModelConfig
from hpt.config.sections.rollout import VerifyConfig
from hpt.config.sections.section import Section
from hpt.data.benchmarks import MAX_TOKENS, find_benchmark, load_benchmark, load_file, unknown_benchmark
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.data.readers import FILE_KINDS
from hpt.evaluation.evaluate import EvalResult
from hpt.evaluation.statistics import Estimate, bootstrap_average
from hpt.model.positions import check_positions
from hpt.records.checkpoints import last_checkpoint
from hpt.records.files import CONFIG
from hpt.rollout import Sampling
from hpt.support.errors import ConfigError
from hpt.training.checkpoint import check_files
from hpt.verify import VERIFIERS, Verifier, make_verifier

FILE_N, FILE_MAX_TOKENS = 8, 1024
_VERIFIER_KINDS = {"math": "mathematics", "boxed": "mathematics, boxed", "choice": "multiple choice"}

SectionKind = TypeVar("SectionKind", bound=Section)


class EvaluatedModel(NamedTuple):
    """path: a folder or hub name. prompt, verifier: those that the model was trained with, where a run says so."""

    path: str
    prompt: PromptConfig = PromptConfig()
    verifier: str = "math"


@dataclass(frozen=True)
class EvaluationTask:
    """One benchmark or file of questions, and how it is sampled and scored.

    name: of the benchmark, or a short one for the file. source: the file or the name on the hub.
    verifier: "math", "boxed", "choice" or "module:function". ks: the k of pass@k.
    """

    name: str
    source: str
    questions: list[Question]
    verifier: str
    sampling: Sampling
    ks: list[int]

    def settings(self) -> dict[str, Any]:
        return {"data": self.source, "verifier": self.verifier, **asdict(self.sampling)}


def find_model(name: str) -> EvaluatedModel:
    """The model of a folder, a hub name, a checkpoint, or a run, which stands for its last checkpoint."""
    path = name
    recipe = Path(name) / CONFIG
    if recipe.is_file():
        path = str(last_checkpoint(Path(name)))
    else:
        recipe = Path(name).resolve().parent.parent / CONFIG
    check_files(Path(path))
    if not recipe.is_file():
        return EvaluatedModel(path)
    config = load_config(recipe)
    verifier = config.verify.name
    return EvaluatedModel(path, config.prompt, verifier)


def load_tasks(sources: Sequence[str], settings: EvaluationSettings, file_verifier: str) -> list[EvaluationTask]:
    """One task for each source, with its questions.

    file_verifier: the verifier of a file without a known layout, where --verifier does not name one.
    """
    if not sources:
        raise ConfigError("there is nothing to evaluate on: data is an empty list")
    folder = Path(settings.data_dir) if settings.data_dir else None
    tasks = []
    for name, data in zip(_task_names(sources), sources, strict=True):
        verifier: str
        if benchmark := find_benchmark(data):
            source, questions = load_benchmark(benchmark, folder, settings.columns, seed=settings.seed)
            verifier, n, max_tokens = benchmark.verifier, benchmark.n, MAX_TOKENS
        else:
            source = data
            questions, scoring = load_file(data, settings.columns, seed=settings.seed)
            verifier, n, max_tokens = scoring or file_verifier, FILE_N, FILE_MAX_TOKENS
        if settings.temperature == 0:
            n = 1
        n = settings.n or n
        ks = sorted(set(settings.k)) or [2**power for power in range(n.bit_length())]
        if max(ks) > n:
            raise ConfigError(f"--k {max(ks)}: pass@k needs k <= n, and n is {n} for {name}; see --n")
        sampling = Sampling(n, settings.max_tokens or max_tokens, settings.temperature, settings.top_p)
        tasks.append(
            EvaluationTask(name, source, questions[: settings.limit], settings.verifier or verifier, sampling, ks)
        )
    return tasks


def prompt_settings(prompt: PromptConfig, settings: EvaluationSettings, *, has_chat_template: bool) -> PromptConfig:
    """`prompt` with what the settings change; plain where no style is given and the tokenizer has no chat template."""
    style = settings.style
    if style is None and prompt.style == "chat" and not has_chat_template:
        style = "plain"
    changes = settings.model_dump(include={"system", "template", "chat_template_kwargs"}) | {"style": style}
    given = {name: value for name, value in changes.items() if value is not None}
    return make_section(PromptConfig, prompt.model_dump() | given, "the prompt")


def longest_sequence(model_path: str, tasks: Sequence[EvaluationTask], renderer: PromptRenderer) -> int:
    """The most tokens that a prompt and its response may take. HptError where the model has fewer positions."""
    needed = {}
    for task in tasks:
        longest = max(map(len, renderer.encode_prompts(task.questions)))
        what = f"the longest prompt of {task.name} and --max-tokens {task.sampling.max_tokens:,}"
        needed[what] = longest + task.sampling.max_tokens
    check_positions(ModelConfig(path=model_path), needed)
    return max(needed.values())


def named_verifier(name: str) -> Verifier:
    """The verifier of an `EvaluationTask`."""
    settings: dict[str, Any] = {"function": name}
    if name in VERIFIERS:
        settings = {"kind": name}
    elif name == "boxed":
        settings = {"kind": "math", "boxed": True}
    allowed = f"--verifier {name}: {', '.join(VERIFIERS)}, boxed or a function"
    return make_verifier(make_section(VerifyConfig, settings, allowed))


def average_scores(tasks: Sequence[EvaluationTask], results: Mapping[str, EvalResult]) -> dict[str, Estimate]:
    """Averages in which each task counts once, separately for mathematics and multiple choice, as in the paper.

    A kind of which there is only one task has no average.
    """
    shares_by_verifier: dict[str, list[list[float]]] = {}
    for task in tasks:
        shares_by_verifier.setdefault(task.verifier, []).append(results[task.name].shares)
    averages = {}
    for verifier, shares in shares_by_verifier.items():
        kind = _VERIFIER_KINDS.get(verifier, verifier)
        name = f"average, {kind}" if len(shares_by_verifier) > 1 else "average"
        if len(shares) > 1:
            averages[name] = bootstrap_average(shares)
    return averages


def _task_names(sources: Sequence[str]) -> list[str]:
    """A benchmark's own name; for a file, as many of the last parts of its path as make all names distinct."""
    parts = [_name_parts(source) for source in sources]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"--data: {', '.join(sources)} do not have distinct names; give each only once")


def _name_parts(source: str) -> list[str]:
    if benchmark := find_benchmark(source):
        return [benchmark.name]
    is_file = Path(source).suffix in FILE_KINDS
    if not (is_file or "/" in source or "@" in source or Path(source).exists()):
        raise unknown_benchmark(source)
    stem = source.removesuffix(Path(source).suffix) if is_file else source
    return [part for part in re.split(r"[^\w.+-]+", stem) if part]


def make_section(kind: type[SectionKind], values: dict[str, Any], what: str) -> SectionKind:
    """A section of settings; ConfigError, beginning with `what`, where a value is not allowed."""
    try:
        return kind(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        place = f"{what}: {field} = {problem['input']!r}" if field else what
        raise ConfigError(f"{place}: {problem['msg'].removeprefix('Value error, ')}") from None
