"""Grading with math-verify. Runs only in worker processes, whose limits replace math-verify's own timeouts."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from itertools import product
from typing import TypeAlias, TypeGuard

import math_verify
from sympy import Basic, Expr, Float, MatrixBase, SympifyError, UnevaluatedExpr
from sympy.parsing import sympy_parser

from hpt.verify.extract import expand_e_notation, gold_text, has_words_or_digits, is_formula, normalise

Value: TypeAlias = Basic | MatrixBase | str

# math-verify warns once per process that its timeouts are off, which is intended here.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_INTEGER = re.compile(r"-?[0-9]{1,15}")
_HARMLESS = re.compile(r"(?:Integer|Float|Rational|Symbol|E|I|pi|'[^'\\]*'|[\s\d.()+\-*/])*")
_stringify_expr = sympy_parser.stringify_expr


def _stringify_harmless(*arguments: object) -> str:
    """Guards sympy's parse_expr and sympify, which pass the code that this returns to eval().

    Only arithmetic on numbers and symbols is allowed: no other name, call, attribute or subscript.
    """
    code = _stringify_expr(*arguments)
    if not _HARMLESS.fullmatch(code):
        raise SympifyError(f"not evaluated: {code[:100]!r}")
    return code


sympy_parser.stringify_expr = _stringify_harmless


def grade(text: str, boxed: bool, answer: str) -> tuple[str, str]:
    """(status, detail) of the final answer `text` of a response, given the gold `answer`.

    The status is "correct", "incorrect", "unparsable", or "unusable" where the gold answer cannot be parsed.
    """
    gold = gold_text(answer)
    if gold is None:
        return "unusable", ""
    if boxed and _INTEGER.fullmatch(text) and _INTEGER.fullmatch(gold):
        return ("correct" if int(text) == int(gold) else "incorrect"), ""
    readings = _parse_gold(gold)
    if not readings:
        return "unusable", ""
    if text.split() == gold.split():
        return "correct", ""
    if boxed:
        return _grade_text(readings, _box(normalise(text)))
    if is_formula(text):
        as_formula = _grade_text(readings, _box(normalise(text)))
        if as_formula[0] == "correct":
            return as_formula
    return _grade_text(readings, expand_e_notation(text))


def _grade_text(readings: tuple[Value, ...], text: str) -> tuple[str, str]:
    """(status, detail) of a text in which math-verify looks for the answer."""
    try:
        prediction = _parse(text)
    except MemoryError:
        raise
    except Exception as error:
        return "unparsable", _describe(error)
    equal, failure = _compare(readings, prediction)
    if equal:
        return "correct", ""
    if all(isinstance(value, str) for value in prediction):
        return "unparsable", "no mathematical expression was found"
    return ("unparsable", failure) if failure else ("incorrect", "")


def gradable(answer: str) -> bool:
    """Whether a gold answer can be parsed and equals itself; otherwise no response could be correct."""
    gold = gold_text(answer)
    if gold is None:
        return False
    readings = _parse_gold(gold)
    return bool(readings) and _compare(readings, readings)[0]


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> tuple[Value, ...]:
    """The ways to read a gold answer: sympy objects and its text. Empty where it cannot be parsed."""
    try:
        readings = _parse(_box(normalise(gold)))
    except MemoryError:
        raise
    except Exception:
        return ()
    # A gold answer that latex2sympy does not read as a formula (a name, `np.arcsin(10/13)`) is compared as a string.
    if all(isinstance(value, str) for value in readings) and not has_words_or_digits(gold):
        return ()
    return readings


def _box(text: str) -> str:
    # Both sides are parsed inside a box: without one math-verify finds `x_{0}` or `(1,2)` only in part, or not at all.
    return "\\boxed{" + text + "}"


def _parse(text: str) -> tuple[Value, ...]:
    return tuple(math_verify.parse(text, parsing_timeout=None, raise_on_error=True))


def _compare(gold: tuple[Value, ...], prediction: tuple[Value, ...]) -> tuple[bool, str]:
    """Whether any two readings are equal. If not, also what failed while comparing, or ""."""
    failure = ""
    for left, right in product(gold, prediction):
        try:
            if _equal(left, right):
                return True, ""
        except MemoryError:
            raise
        except Exception as error:
            failure = _describe(error)
    return False, failure


def _equal(gold: Value, prediction: Value) -> bool:
    by_value = _compare_values(gold, prediction)
    if by_value is not None:
        return by_value
    return math_verify.verify(gold, prediction, timeout_seconds=None, raise_on_error=True)


def _compare_values(gold: Value, prediction: Value) -> bool | None:
    """Compares the values of two formulas at one arbitrary point. None where that does not decide.

    Formulas with clearly different values are unequal; this avoids sympy's slow `simplify`. math-verify compares
    decimal numbers to six decimal places, which fails for small ones (1.6e-19 would equal 2.7e-21): below 1e-3 they are
    compared to a relative 1e-6. Rounding errors of large numbers are tolerated: 4.5 * 10^33 has no exact binary form.
    """
    if not (_is_plain_formula(gold) and _is_plain_formula(prediction)):
        return None
    symbols = sorted(gold.free_symbols | prediction.free_symbols, key=str)
    point = {symbol: 0.3 + index * 0.618 % 1 for index, symbol in enumerate(symbols)}
    try:
        expected, given = (formula.subs(point).doit().evalf(30) for formula in (gold, prediction))
        difference, size = abs(expected - given), abs(expected)
        if not symbols and (gold.atoms(Float) or prediction.atoms(Float)):
            if 0 < size < 1e-3:
                return bool(difference <= 1e-6 * size)
            if difference <= 1e-13 * size:
                return True
        # Ten times the largest difference that math-verify's rounding could accept.
        return False if difference > 1e-5 * max(1, size) else None
    except MemoryError:
        raise
    except Exception:  # not a number, such as a function f(x), or undefined at this point
        return None


def _is_plain_formula(value: Value) -> TypeGuard[Expr]:
    """Whether only its value counts. A single symbol can be a word, and percentages have special rules."""
    return isinstance(value, Expr) and not value.is_Symbol and not value.has(UnevaluatedExpr)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


# Warm-up, before workers are forked: the first formulas make the LaTeX parser build its tables and import the rest of
# sympy, which takes a few tenths of a second.
for _text, _gold in (("(x+1)^2", "x^2+2x+1"), (r"\frac{3}{4}", "0.75"), ("(3, 4]", "[3, 4)"), ("x < 2", "2 > x")):
    grade(_text, True, _gold)
