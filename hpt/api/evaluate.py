"""`hpt.evaluate`: how often a model is right on benchmarks or files of questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hpt.support.messages import printing_messages
from hpt.support.named_functions import name_function, only_functions_given_now

if TYPE_CHECKING:
    import datasets

    from hpt.evaluation.evaluate import EvalResult

GIVEN = "given"
"""The name of questions that were given as objects."""


def evaluate(
    model: str | Path,
    data: str | Path | datasets.Dataset | Sequence[str | Path | Mapping[str, Any]],
    *,
    output: str | Path | None = None,
    verifier: str | Callable[..., Any] | None = None,
    **settings: Any,
) -> EvalResult | dict[str, EvalResult]:
    """How often a model is right: avg@n and unbiased pass@k.

        result = hpt.evaluate(run.checkpoint, data=held_out, n=8)
        result.accuracy, result.average(), result.pass_at(8)   # the latter two with 95% intervals over questions

    model: a Hugging Face folder or name, a checkpoint, or a run's folder.
    data: a benchmark by name, a file, a hub name, a list of dicts, a datasets.Dataset, or a list of names and files.
    output: a folder for results.jsonl and summary.json.
    verifier: math, boxed, choice, or a function (response, answer) -> score, as an object or "module:function".
    settings: the other options of `hpt eval`: n, k, temperature, top_p, max_tokens, engine, tensor_parallel,
        data_parallel, memory_share, batch_size, limit, seed, style, system, template, chat_template_kwargs, dtype,
        device, data_dir, columns.

    Returns the result; a dict of results by name where `data` is a list of names and files.
    HptError where something is wrong that the user can mend.
    """
    with only_functions_given_now(), printing_messages(), TemporaryDirectory() as scratch:
        from hpt.api.evaluation import evaluate_sources, evaluation_settings
        from hpt.data.records import write_records
        from hpt.support.process_state import restoring_process_state

        several = False
        if isinstance(data, str | Path):
            sources = [str(data)]
        elif isinstance(data, list | tuple) and all(isinstance(each, str | Path) for each in data):
            sources, several = [str(each) for each in data], True
        else:
            path = Path(scratch) / f"{GIVEN}.jsonl"
            write_records(data, path)
            sources = [str(path)]
        if callable(verifier):
            verifier = name_function(verifier)
        checked = evaluation_settings(verifier=verifier, **settings)
        with restoring_process_state():
            evaluation = evaluate_sources(str(model), sources, checked, Path(output) if output else None)
    return evaluation.results if several else next(iter(evaluation.results.values()))
