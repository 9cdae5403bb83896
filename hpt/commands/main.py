"""The command `hpt`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from hpt import __version__
from hpt.support.errors import HptError

USAGE_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 2 for an error the user can mend, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    # A recipe's module:function may stand in the folder at hand, as it may with python -m.
    sys.path.append(str(Path.cwd()))
    # Notes about a run go to stderr, so that stdout holds results alone.
    console = Console(stderr=True, highlight=False)
    try:
        return options.command(options, console)
    except HptError as error:
        console.print(f"[bold red]error:[/] {_plain(str(error))}", soft_wrap=True)
        return USAGE_ERROR
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return INTERRUPTED


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hpt",
        description="Post-train language models with SFT and RL as one gradient (Hybrid Post-Training).",
        epilog="Try it: hpt train demo && hpt report runs/demo",
    )
    parser.add_argument("--version", action="version", version=f"hpt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_eval(commands)
    _add_compare(commands)
    _add_plan(commands)
    _add_report(commands)
    _add_export(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser(
        "train",
        help="train by a recipe, or continue a run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a model by a recipe: a YAML file or the name of a shipped one.",
    )
    train.add_argument("recipe", nargs="?", help="a YAML file, or the name of a shipped recipe")
    train.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, e.g. optimizer.lr=1e-5")
    train.add_argument(
        "--resume", metavar="DIR", type=Path, help="continue the run in DIR from its last complete checkpoint"
    )
    train.set_defaults(command=_train)
    # Listing recipes and settings means importing the configuration, and torch with it: only when help is asked for.
    train.format_help = lambda: argparse.ArgumentParser.format_help(train) + _train_epilog()  # type: ignore[method-assign]


def _train_epilog() -> str:
    from hpt.config.recipe import describe_settings, shipped_methods, shipped_recipes

    return (
        f"\nrecipes: {', '.join(shipped_recipes())}\n"
        f"methods (method=NAME): {', '.join(shipped_methods())}\n\n"
        "settings, with their defaults:\n"
        f"{describe_settings()}\n\n"
        "examples:\n"
        "  hpt train demo\n"
        "  hpt train demo method=grpo seed=1 output=runs/grpo-1\n"
        "  hpt train smollm2 steps=10\n"
        "  hpt train --resume runs/demo\n"
    )


def _train(options: argparse.Namespace, console: Console) -> int:
    from hpt.config.recipe import load_config
    from hpt.report import accuracy_table, summary_figure
    from hpt.support.distributed import launched
    from hpt.training import run

    if options.resume is not None:
        settings = [options.recipe, *options.settings] if options.recipe else options.settings
        folder = options.resume
        code = run.resume(folder, settings, console)
    elif options.recipe is None:
        raise HptError("hpt train needs a recipe, or --resume DIR; see hpt train --help")
    else:
        config = load_config(options.recipe, options.settings)
        folder = Path(config.output)
        code = run.start(config, console)
    if code == 0 and launched().main:
        Console().print(accuracy_table(folder))
        figure = summary_figure([folder], folder / "figures" / "summary.png")
        console.print(f"Run: {folder}   figure: {figure}   more: hpt report {folder}", soft_wrap=True)
    return code


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="avg@k and pass@k of a model on benchmarks or files of questions",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="How often a model is right: avg@n and unbiased pass@k, with 95% intervals over questions.",
        epilog=_EVAL_EPILOG,
    )
    evaluate.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder or name, a checkpoint, or a run's folder"
    )
    evaluate.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DATA",
        help="a benchmark, a .jsonl, .json, .csv or .parquet file with prompt and answer, or NAME[:CONFIG]@SPLIT of "
        "the Hugging Face hub; may be given several times",
    )
    evaluate.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder of local benchmark files (default: $HPT_DATA_DIR)"
    )
    evaluate.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="FIELD=NAME,...",
        help="names of a file's columns for prompt, answer, id and grade (default: found by known layouts)",
    )
    evaluate.add_argument(
        "--n",
        type=_positive_int,
        help="responses a question (default 8; a benchmark's own, see below; 1 at temperature 0)",
    )
    evaluate.add_argument(
        "--k",
        type=_positive_ints,
        nargs="+",
        action="extend",
        metavar="K",
        help="the k of pass@k, with commas or spaces between them, at most n (default 1,2,4,... up to n)",
    )
    evaluate.add_argument("--temperature", type=_non_negative, default=0.6, help="0 is greedy (default 0.6)")
    evaluate.add_argument("--top-p", type=_share, default=0.95, help="default 0.95")
    evaluate.add_argument(
        "--max-tokens", type=_positive_int, help="tokens of a response (default 1024, for benchmarks 8192)"
    )
    evaluate.add_argument(
        "--batch-size", type=_positive_int, default=64, help="responses generated at once (default 64)"
    )
    evaluate.add_argument("--limit", type=_positive_int, metavar="N", help="only the first N questions of each")
    evaluate.add_argument(
        "--seed", type=_whole, default=0, help="of the sampling and of the order of GPQA's choices (default 0)"
    )
    evaluate.add_argument(
        "--style",
        choices=["chat", "plain"],
        help="prompt style (default: the run's, else chat where the tokenizer has a chat template)",
    )
    evaluate.add_argument("--system", help="system message of a chat prompt")
    evaluate.add_argument("--template", help="wraps the question, with {question} in it")
    evaluate.add_argument(
        "--verifier",
        metavar="NAME",
        help="math (math-verify), boxed (math-verify, boxed answers only), choice (a letter), or MODULE:FUNCTION, "
        "(response, answer) -> score (default: a benchmark's own; for a file the run's, else math)",
    )
    evaluate.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    evaluate.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for results.jsonl and summary.json, a folder each for several",
    )
    evaluate.set_defaults(command=_eval)


_EVAL_EPILOG = """
benchmarks, with the responses a question that the literature takes:
  AIME24, AIME25, AMC (32); MATH-500, Minerva, OlympiadBench (1); GPQA-Diamond, ARC-c (1, multiple choice)
  Local files come first: NAME/test.json, NAME/NAME.json or NAME.json (or .jsonl, .csv, .parquet) in --data-dir or
  $HPT_DATA_DIR, in their published layouts; without one the Hugging Face hub is asked, through the datasets library
  (pip install 'hpt[eval]').

examples:
  hpt eval runs/demo --data held_out.jsonl --n 64
  hpt eval Qwen/Qwen2.5-Math-1.5B --data AIME24 --data MATH-500 --data-dir benchmarks --output results/base
  hpt compare results/base results/trained
"""


def _eval(options: argparse.Namespace, console: Console) -> int:
    from hpt.commands.evaluate import run_eval

    return run_eval(options, console)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="two evaluations question by question: newly solved, forgotten, significance",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Two evaluations of the same questions, question by question: what B solves and A did not (newly\n"
        "solved), what A solved and B does not (forgotten), and how likely such a difference is by chance.",
        epilog=_COMPARE_EPILOG,
    )
    compare.add_argument("a", metavar="A", type=Path, help="an evaluation of hpt eval --output, or a run")
    compare.add_argument(
        "b", metavar="B", type=Path, nargs="?", help="what is compared with it (default: A's own last evaluation)"
    )
    for side in "AB":
        compare.add_argument(
            f"--step-{side.lower()}",
            type=_whole,
            metavar="STEP",
            help=f"of run {side}, its evaluation after this training step",
        )
    compare.add_argument(
        "--solved",
        choices=["majority", "any", "avg"],
        default="majority",
        help="a question is solved where more than half of its responses are right (majority, the default) or one is "
        "(any); with avg newly solved and forgotten are those whose share of right responses rose and fell",
    )
    compare.add_argument(
        "--output", type=Path, metavar="FILE", help="a JSON file for all numbers, question by question"
    )
    compare.set_defaults(command=_compare)


_COMPARE_EPILOG = """
A run's evaluation is the one in its eval/, where hpt eval --output RUN/eval has put it, else the last of its training.

examples:
  hpt compare runs/demo                             its first evaluation with its last
  hpt compare runs/demo runs/grpo                   the last ones of two runs
  hpt compare runs/demo --step-a 40                 after step 40 with the last
  hpt compare results/base results/trained          two evaluations by hpt eval
"""


def _compare(options: argparse.Namespace, console: Console) -> int:
    from hpt.evaluation.compare import run_compare

    steps = (options.step_a, options.step_b)
    return run_compare(options.a, options.b, steps, options.solved, options.output, console)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="a checkpoint as a plain model folder",
        description="Write a checkpoint as a Hugging Face folder of safetensors, with its adapters merged.",
    )
    export.add_argument("model", metavar="CHECKPOINT", help="a checkpoint, or a run's folder for its last one")
    export.add_argument("folder", metavar="FOLDER", type=Path, help="what to write; a new or an empty folder")
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace, console: Console) -> int:
    from hpt.commands.export import run_export
    from hpt.support.quiet import quiet_libraries

    quiet_libraries()
    return run_export(options, console)


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "plan",
        help="predicted memory of a recipe, part by part, and whether it fits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The memory a run will need, from its recipe and its model's config alone; nothing is loaded.\n"
        "The hardware is the recipe's (hardware.*), else this machine's. Exit code 1 where it does not fit.",
        epilog=_PLAN_EPILOG,
    )
    plan.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    plan.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe")
    plan.set_defaults(command=_plan)


_PLAN_EPILOG = """
examples:
  hpt plan my-recipe.yaml hardware.gpu_memory_gib=80
  hpt plan my-recipe.yaml engine=deepspeed deepspeed.stage=3 hardware.gpus=8 hardware.gpu_memory_gib=80
"""


def _plan(options: argparse.Namespace, console: Console) -> int:
    from hpt.config.recipe import load_config
    from hpt.memory import run_plan
    from hpt.support.quiet import quiet_libraries

    quiet_libraries()
    return run_plan(load_config(options.recipe, options.settings))


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="figures and one HTML page of one run, or of several side by side")
    report.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder")
    report.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: the run's folder)")
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace, console: Console) -> int:
    from hpt.report import report

    print(report(options.runs, options.output))
    return 0


Number = TypeVar("Number", int, float)


def _number(kind: type[Number], allowed: str, fits: Callable[[Number], bool]) -> Callable[[str], Number]:
    """A type for argparse that says what is allowed."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r}")
        return value

    return parse


_whole = _number(int, "a whole number >= 0", lambda value: value >= 0)
_positive_int = _number(int, "a whole number >= 1", lambda value: value >= 1)
_non_negative = _number(float, "a number >= 0", lambda value: 0 <= value < math.inf)
_share = _number(float, "a number above 0 and at most 1", lambda value: 0 < value <= 1)


def _positive_ints(text: str) -> list[int]:
    try:
        return [_positive_int(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be whole numbers >= 1 with commas between them, got {text!r}") from None


def _columns(text: str) -> dict[str, str]:
    columns = dict(part.partition("=")[::2] for part in text.split(","))
    for field, name in columns.items():
        if field not in ("prompt", "answer", "id", "grade") or not name:
            raise argparse.ArgumentTypeError(
                f"must be FIELD=NAME with a field of prompt, answer, id, grade, got {text}"
            )
    return columns
