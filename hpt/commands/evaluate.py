"""`hpt eval`: how often a model is right on benchmarks or files of questions."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from pathlib import Path
from typing import Any

from hpt.commands.arguments import (
    CommandParser,
    non_negative_float,
    non_negative_int,
    positive_int,
    positive_ints,
    share,
)
from hpt.support.terminal import print_results
from hpt.version import VERSION

HELP = "avg@n and pass@k of a model on benchmarks or files of questions"

_SETTINGS = (
    *("n", "temperature", "top_p", "max_tokens", "engine", "tensor_parallel", "data_parallel", "memory_share"),
    *("batch_size", "limit", "seed", "style", "system", "template", "chat_template_kwargs", "verifier", "dtype"),
    *("device", "data_dir", "columns"),
)
"""The options that are settings of an evaluation, besides k."""

logger = logging.getLogger(__name__)

_EPILOG = """
benchmarks, with the responses per question that are usual in the literature:
  AIME24, AIME25, AMC (32); MATH-500, Minerva, OlympiadBench (1); GPQA-Diamond, ARC-c (1, multiple choice)
  Local files come first: NAME/test.json, NAME/NAME.json or NAME.json (or .jsonl, .csv, .parquet) in --data-dir or
  $HPT_DATA_DIR, in their published layouts. Without one, the questions come from the Hugging Face hub.

examples:
  hpt eval runs/demo --data runs/demo/eval.jsonl --n 64
  hpt eval Qwen/Qwen2.5-Math-1.5B --data AIME24 --data MATH-500 --data-dir benchmarks --output results/base
  hpt eval Qwen/Qwen2.5-Math-7B --data AIME24 --engine vllm --data-parallel 8
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
    parser.add_argument("--data-dir", metavar="DIR", help="folder of local benchmark files (default: $HPT_DATA_DIR)")
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
    parser.add_argument(
        "--engine",
        choices=["auto", "transformers", "vllm"],
        default="auto",
        help="what samples the responses (default: auto, which is vllm where it is installed, on a GPU)",
    )
    parser.add_argument(
        "--tensor-parallel",
        type=positive_int,
        default=1,
        metavar="N",
        help="vllm: GPUs that share one copy of the model (default: 1)",
    )
    parser.add_argument(
        "--data-parallel",
        type=positive_int,
        default=1,
        metavar="N",
        help="vllm: copies of the model, which share the questions (default: 1)",
    )
    parser.add_argument(
        "--memory-share", type=share, default=0.9, help="vllm: share of each GPU's memory that it takes (default: 0.9)"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=64, help="transformers: responses generated at once (default: 64)"
    )
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
        "--chat-template-kwargs",
        type=_json_object,
        metavar="JSON",
        help='what else the chat template is given, e.g. {"enable_thinking": false} (default: the run\'s)',
    )
    parser.add_argument(
        "--verifier",
        metavar="NAME",
        help="math (math-verify), boxed (math-verify, boxed answers only), choice (a letter), or MODULE:FUNCTION, "
        "(response, answer) -> score (default: a benchmark's own; for a file the run's, else math)",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="default: auto, the model's own on a GPU and float32 on a CPU",
    )
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


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    logger.info(f"hpt {VERSION}: evaluating {options.model}, loading PyTorch")
    from hpt.api.evaluation import evaluate_sources, evaluation_settings
    from hpt.evaluation.tables import benchmark_table, result_tables

    settings = {name: getattr(options, name) for name in _SETTINGS}
    settings["k"] = list(itertools.chain(*options.k or []))
    evaluation = evaluate_sources(options.model, options.data, evaluation_settings(**settings), options.output)
    if len(evaluation.tasks) == 1:
        (task,) = evaluation.tasks
        print_results(result_tables(evaluation.results[task.name], task.ks, f"{options.model} on {task.name}"))
    else:
        print_results(benchmark_table(evaluation.results, evaluation.averages, options.model))
    if options.output:
        logger.info(f"Results per question: {options.output}")
    return 0
