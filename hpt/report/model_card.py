"""The model card of a checkpoint, made from its run: method, data, evaluations with intervals, figure, recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hpt.evaluation.evaluate import SUMMARY
from hpt.evaluation.statistics import Estimate, bootstrap
from hpt.records.files import EVALUATIONS
from hpt.report.evaluations import QuestionCounts
from hpt.report.runs import Run, load_runs
from hpt.report.summary import summary_figure
from hpt.support.files import write_file_atomically

FIGURE = "summary.png"
PAPER = "https://arxiv.org/abs/2509.04419"


@dataclass(frozen=True)
class Score:
    """How often a model is right on some data: a share in [0, 1] with its 95% interval over questions."""

    data: str  # a name on the hub, or of a file
    questions: int
    measure: str  # as in "avg@8"
    estimate: Estimate
    when: str

    def __str__(self) -> str:
        mean, low, high = (100 * number for number in self.estimate)
        return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def write_model_card(run_folder: Path, step: int, folder: Path) -> None:
    """Writes README.md and the run's figure into `folder`, for the model after `step` of the run.

    HptError where the run's records cannot be read.
    """
    (run,) = load_runs([run_folder])
    summary_figure([run_folder], folder / FIGURE)
    card = model_card(run, step)
    write_file_atomically(folder / "README.md", str(card).encode())


def model_card(run: Run, step: int) -> ModelCard:
    """The card of the model after `step` of `run`. Needs no hub."""
    scores = [*_scores_of_training(run, step), *_scores_of_hpt_eval(run, step)]
    data = ModelCardData(
        model_name=run.name,
        base_model=run.model if _is_hub_name(run.model) else None,
        datasets=re.findall(r"([\w.-]+/[\w.-]+)(?::[\w.-]+)?@[\w.-]+", run.data) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["hpt", run.method, "reinforcement-learning"],
        eval_results=[_for_the_hub(score) for score in scores if score.when != _START] or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(run, step, scores)}")


def _text(run: Run, step: int, scores: Sequence[Score]) -> str:
    batch, rollout = run.config.get("batch") or {}, run.config.get("rollout") or {}
    facts = {
        "method": f"`{run.method}`",
        "base model": f"`{run.model}`",
        "data": f"`{run.data}`",
        "steps": f"{step} of {run.total_steps}, each on {batch.get('questions')} questions",
        "rollouts": f"{rollout.get('n')} a question, of up to {rollout.get('max_tokens')} tokens",
        "seed": f"{run.seed}",
    }
    lines = [
        f"# {run.name}",
        "",
        f"Trained by hpt, with SFT on demonstrations and RL on verified rollouts as one gradient ([paper]({PAPER})).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {fact} |" for name, fact in facts.items()),
        "",
        "## Evaluation",
        "",
    ]
    if scores:
        lines += ["Right answers in %, with 95% intervals over questions.", ""]
        lines += ["| data | questions | measure | model | right |", "|---|---|---|---|---|"]
        lines += [f"| `{s.data}` | {s.questions} | {s.measure} | {s.when} | {s} |" for s in scores]
    else:
        lines.append("This run recorded no evaluation.")
    lines += ["", "## The run", "", f"![Reward, gate, accuracy, entropy and length over the run]({FIGURE})", ""]
    if run.changes:
        lines += [*(f"- {change}" for change in run.changes), ""]
    lines += ["## Recipe", "", "```yaml", run.config_text.rstrip(), "```", ""]
    return "\n".join(lines)


_START = "before training"


def _scores_of_training(run: Run, step: int) -> Iterator[Score]:
    """Of the run's own evaluations: the one before the first step, and the last one up to `step`."""
    steps = [found for found in run.question_counts if found <= step]
    for found in dict.fromkeys([*steps[:1], *steps[-1:]]):
        counts = run.question_counts[found]
        when = _START if found == 0 else f"after step {found}"
        yield _score(str((run.config.get("data") or {}).get("eval")), counts, when)


def _score(data: str, counts: Sequence[QuestionCounts], when: str) -> Score:
    estimate = bootstrap([question.correct / question.n for question in counts])
    return Score(_name(data), len(counts), f"avg@{max(question.n for question in counts)}", estimate, when)


def _scores_of_hpt_eval(run: Run, step: int) -> Iterator[Score]:
    """Of `hpt eval --output RUN/eval` or a folder in it, where this very checkpoint was evaluated."""
    for path in sorted((run.folder / EVALUATIONS).rglob(SUMMARY)):
        summary = json.loads(path.read_text(encoding="utf-8"))
        settings = summary["settings"]
        if Path(settings["model"]).parts[-2:] != ("checkpoints", f"step-{step:06d}") or "n" not in summary:
            continue  # of another model, or the averages over several benchmarks
        measure = f"avg@{summary['n']}"
        estimate = Estimate(**summary[measure])
        yield Score(_name(settings["data"]), summary["questions"], measure, estimate, f"after step {step}")


def _name(data: str) -> str:
    """Of a file without its folders, which are of this machine."""
    return data if "@" in data else Path(data).name


def _for_the_hub(score: Score) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=score.data,
        dataset_name=score.data,
        metric_type="accuracy",
        metric_name=f"{score.measure} in %, {score.when}, with its 95% interval",
        metric_value=str(score),
    )


def _is_hub_name(path: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None and not Path(path).exists()
