"""Which letter a response settles on, and what ChoiceVerifier makes of it."""

import time

import pytest

from hpt.support.errors import DataError
from hpt.verify import ChoiceVerifier, Verdict
from hpt.verify.choice import chosen_letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{\mathrm{D}}", "D"),
        (r"\boxed{$C$}", "C"),
        (r"\boxed{B. 4 m/s}", "B"),
        (r"\boxed{(C) the cat}", "C"),
        (r"\boxed{A} is wrong, so \boxed{C}", "C"),
        (r"The answer is (A), no: \boxed{B}", "B"),
        (r"\boxed{42} so the answer is (B).", "B"),
        (r"the answer is (B), hence \boxed{", "B"),
        ("The answer is (B).", "B"),
        ("the correct answer is B", "B"),
        ("The answer is B because it moves", "B"),
        ("The answer is A because it moves", "A"),
        ("Answer: B", "B"),
        ("**Answer: C**", "C"),
        ("**Answer:** C\n", "C"),
        (r"The answer is: $\text{D}$", "D"),
        (r"answer is $\boxed{D}$", "D"),
        ("The answer is option D.", "D"),
        ("The correct choice is (d)", "D"),
        ("Answer: A\nNo. Answer: B", "B"),
        ("B", "B"),
        (" (b).", "B"),
        ("B) 4 m/s", "B"),
    ],
)
def test_a_choice(response, letter):
    assert chosen_letter(response) == letter


@pytest.mark.parametrize(
    "response",
    [
        "",
        "I think so",
        r"\boxed{42}",
        r"\boxed{AB}",
        r"\boxed{A, B}",
        r"\boxed{A cat}",
        "The answer is A cat",
        "The answer is I think",
        "The answer is Because",
        "The answer is not (A)",
        "The answer is (A) or (B)",
        "The answer is A or B",
        "The answer is B, C",
        "the answer is a",
        "The answer is 4.",
    ],
)
def test_no_choice(response):
    assert chosen_letter(response) is None


def test_a_statement_counts_in_the_last_2000_characters():
    statement = "answer is (B)"
    rest = ".".ljust(2_000 - len(statement), "z")
    assert chosen_letter(f"The {statement}{rest}") == "B"
    assert chosen_letter(f"The {statement}{rest}z") is None


@pytest.mark.parametrize(
    "nonsense",
    [
        "answer is " * 100_000,
        "(" * 1_000_000,
        "answer " + "*" * 1_000_000,
        "answer:" + " " * 1_990 + "xy",
        r"answer is \text " * 10_000,
        r"\boxed{" + "(" * 1990 + "}",
        r"\boxed{" + "{" * 900 + "}" * 900 + "}",
        "$" * 9_999,
    ],
)
def test_nonsense_is_read_in_linear_time(nonsense):
    start = time.perf_counter()
    assert chosen_letter(nonsense) is None
    assert time.perf_counter() - start < 0.5  # it takes milliseconds; the machine may be busy


def test_verdicts():
    with ChoiceVerifier(workers=1) as verifier:
        responses = [r"so \boxed{C}", "The answer is (B)", "no idea"]
        assert verifier.score(responses, ["C", r"\boxed{C}", "(C)"]) == [
            Verdict("correct", 1.0),
            Verdict("incorrect", 0.0),
            Verdict("unparsable", 0.0, "no choice was found"),
        ]
        assert verifier.parsable(["A", "(d)", "4", "", "the cat"]) == [True, True, False, False, False]
        with pytest.raises(DataError, match="cannot parse the gold answer '4'"):
            verifier.score(["A"], ["4"])
