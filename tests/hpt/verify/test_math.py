"""What MathVerifier calls correct, incorrect, unparsable and timed out."""

import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt.support.errors import DataError
from hpt.verify import MathVerifier, Verdict
from hpt.verify.extract import MAX_ANSWER, FinalAnswer, expand_e_notation, final_answer, gold_text, normalise
from hpt.verify.pool import WorkerPool

PUBLISHED = Path(__file__).parents[3].parent / "shared" / "eval"
FILES = ["AIME24", "AIME25", "AMC23", "MATH-500", "Minerva", "Olympiad-Bench"]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(workers=2, timeout=20.0, memory_mb=512) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def strict():
    """One worker with tight limits, for answers that are meant to exceed them."""
    with MathVerifier(workers=1, timeout=0.5, memory_mb=256) as verifier:
        verifier.score(["warm \\boxed{1}"], ["1"])
        yield verifier


def status(verifier, response, answer):
    (verdict,) = verifier.score([response], [answer])
    return verdict.status


# ---- where the answer is


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{4}", FinalAnswer("4", True)),
        (r"\boxed{3}, no: \boxed{ \frac{1}{2} }.", FinalAnswer(r"\frac{1}{2}", True)),
        (r"\boxed{\text{total }\boxed{7}}", FinalAnswer("7", True)),
        (r"\boxed{\{1, 2\}} and {more}", FinalAnswer(r"\{1, 2\}", True)),
        (r"\boxed {5}", FinalAnswer("5", True)),
        (r"\fbox{6}", FinalAnswer("6", True)),
        (r"\boxed{1} then cut \boxed{2", None),
        (r"\boxed{}", None),
        ("", None),
        (" \n ", None),
        ("The answer is 4.", FinalAnswer("The answer is 4.", False)),
        (r"\boxed{" + "1" * MAX_ANSWER + "}", FinalAnswer("1" * MAX_ANSWER, True)),
        (r"\boxed{" + "1" * (MAX_ANSWER + 1) + "}", None),
    ],
)
def test_final_answer(response, expected):
    assert final_answer(response) == expected


def test_only_the_end_of_an_unboxed_response_is_read():
    final = final_answer("the answer is 3. " + "x" * 10_000 + " 8")
    assert final is not None
    assert final.text.endswith("x 8")
    assert len(final.text) <= MAX_ANSWER


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("204", "204"),
        (r"\boxed{204}", "204"),
        ("$2n$", "$2n$"),
        ("", None),
        ("  ", None),
        (r"\frac{1}{", None),
        ("}{", None),
        ("1}{2", None),
        (r"\boxed{4", None),
        ("4\0", None),
        ("x" * (MAX_ANSWER + 1), None),
    ],
)
def test_gold_text(answer, expected):
    assert gold_text(answer) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4.5e3", "4500"),
        ("1.6e-3", "0.0016"),
        ("2E+2 m", "200 m"),
        ("e^{2}", "e^{2}"),
        ("x2e3", "x2e3"),
        ("1e3x", "1e3x"),
        ("3e", "3e"),
        ("1e99999", "1e99999"),
    ],
)
def test_expand_e_notation(text, expected):
    assert expand_e_notation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("42.", "42"), ("-1./3", "-1/3"), ("0.5", "0.5"), ("1.5e1.", "15"), ("x. ", "x"), (r"x \right.", r"x \right.")],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


# ---- what equals what


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        ("4", "4"),
        ("7", "007"),
        ("4", "4.0"),
        ("4", "4."),
        ("4", "x = 4"),
        ("1,234", "1234"),
        ("0.5", r"\frac{1}{2}"),
        (r"\frac12", "1/2"),
        ("90", r"90^\circ"),
        ("3", r"3\text{ cm}"),
        ("A", "(A)"),
        ("A", r"\text{A}"),
        (r"\text{Evelyn}", "Evelyn"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        (r"4.5\times 10^{33}", "4.5e33"),
        ("4.5e33", r"4.5 \times 10^{33}"),
        (r"\sqrt{5+2\sqrt{6}} \cdot 10^{40}", r"(\sqrt{2}+\sqrt{3}) \cdot 10^{40}"),
        (r"1.1 \times 1.1 \times 10^{20}", r"1.21 \times 10^{20}"),  # off by 16,384 in double precision
        ("1.6e-19", r"1.6 \times 10^{-19}"),
        ("0.0005", "0.00050000004"),  # below 1e-3 to a relative 1e-6
        ("-1./3", r"-\frac{1}{3}"),
        (r"3\sqrt{13}", r"3\sqrt{13}."),
        (r"\boxed{204}", "204"),
        (r"$\frac{1}{2 n+2}$", r"\frac{1}{2(n+1)}"),
        ("np.arcsin(10/13)", "np.arcsin(10/13)"),
    ],
)
def test_correct(verifier, answer, given):
    assert verifier.score([f"so \\boxed{{{given}}}"], [answer]) == [Verdict("correct", 1.0)]


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        ("4", "5"),
        ("4", "-4"),
        ("4", r"\frac{1}{4}"),
        ("A", "B"),
        ("x+1", "x-1"),
        ("123456789012", "123456789013"),
        ("3.14", r"\pi"),
        # Six decimal places, math-verify's measure, would call these equal.
        ("1.6e-19", "2.7e-21"),
        ("0.0000001", "0.0000003"),
        ("0.0005", "0.0005004"),
        ("0.00005", "0.0000500001"),
        ("4500000000.5", "4500000001.5"),
    ],
)
def test_incorrect(verifier, answer, given):
    assert status(verifier, f"so \\boxed{{{given}}}", answer) == "incorrect"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 4.", "4"),
        ("#### 72", "72"),
        ("Hence $\\frac{7}{2}$.", "3.5"),
        ("Altogether it is (1+2)*3", "9"),
        ("The answer is 4.5e33.", "4.5e33"),
        (r"4.5\times 10^{33}", "4.5e33"),
        (r"4.5 \times 10^{33} \mathrm{~erg}", "4.5e33"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    ],
)
def test_answers_without_a_box(verifier, response, answer):
    assert status(verifier, response, answer) == "correct"
    assert status(verifier, response, "1234567") == "incorrect"


@pytest.mark.parametrize(
    "response",
    [
        "",
        "I do not know",
        r"cut off \boxed{12",
        r"\boxed{}",
        r"\boxed{???}",
        "\\boxed{4\0}",
        "\ud800",
        r"\boxed{\frac}",
    ],
)
def test_unparsable(verifier, response):
    assert verifier.score([response], ["12"])[0].status == "unparsable"
    assert verifier.score([response], ["12"])[0].score == 0.0


@pytest.mark.parametrize("name", FILES)
def test_every_published_gold_equals_itself(verifier, name):
    if not PUBLISHED.is_dir():
        pytest.skip("the published test files are not beside the repository")
    golds = [row["answer"] for row in json.loads((PUBLISHED / name / "test.json").read_text())]
    # \displaystyle means nothing but keeps the texts unequal, so that each is parsed and compared.
    responses = [f"Therefore \\boxed{{\\displaystyle {gold_text(gold)}}}." for gold in golds]
    verdicts = verifier.score(responses, golds)
    assert [gold for gold, verdict in zip(golds, verdicts, strict=True) if verdict.status != "correct"] == []
    assert {verdict.status for verdict in verifier.score(golds, golds)} == {"correct"}  # without a box, too


def test_golds_that_cannot_be_parsed(verifier):
    golds = ["4", "", r"\frac{1}{", "???", r"\frac{}{}", "x" * 3000, "yes"]
    assert verifier.parsable(golds) == [True, False, False, False, False, False, True]
    with pytest.raises(DataError, match=r"cannot parse the gold answer '\?\?\?'"):
        verifier.score([r"\boxed{4}", r"\boxed{4}"], ["4", "???"])


# ---- order, repetition, misuse


def test_verdicts_keep_the_order_of_the_responses(verifier):
    responses = [f"\\boxed{{{index % 7}x}}" for index in range(60)]
    verdicts = verifier.score(responses, ["3x"] * 60)
    assert [verdict.status == "correct" for verdict in verdicts] == [index % 7 == 3 for index in range(60)]


def test_no_responses(verifier):
    assert verifier.score([], []) == []
    assert verifier.parsable([]) == []


def test_lengths_and_types_are_checked(verifier):
    with pytest.raises(ValueError, match="2 responses but 1 answers"):
        verifier.score(["a", "b"], ["a"])
    with pytest.raises(TypeError, match="answer 0 must be a string, got 4"):
        verifier.score(["4"], [4])


# ---- hostile answers

EXCEED_THE_TIME = {
    "tower": r"\boxed{9^{9^{9^9}}}",
    "factorial": r"\boxed{10^9!}",
    "parentheses": r"\boxed{" + "(" * 950 + "2" + ")" * 950 + "}",
    "sum": r"\boxed{\sum_{n=1}^{10^{10}} \frac{1}{n^{n}}}",
}


@pytest.mark.parametrize("name", EXCEED_THE_TIME)
def test_an_answer_costs_at_most_its_time_limit(strict, name):
    start = time.monotonic()
    (verdict,) = strict.score([EXCEED_THE_TIME[name]], ["4"])
    elapsed = time.monotonic() - start
    assert verdict.status == "timeout"
    assert verdict.score == 0.0
    assert "0.5 s" in verdict.detail
    assert 0.5 <= elapsed < 3.0  # the limit, a kill, and a busy machine
    assert status(strict, r"\boxed{4}", "4") == "correct"


@pytest.mark.parametrize(
    "response",
    [
        "{" * 500_000 + "}" * 500_000,
        r"\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
        r"\boxed{" * 100_000,
        r"\boxed{" * 100_000 + "4" + "}" * 100_000,
        r"\boxed{" + r"\sqrt{" * 5_000 + "2" + "}" * 5_000 + "}",
        "$" * 1_000_000,
        "\\boxed" + " " * 1_000_000,
        "answer is " * 100_000,
        "\0" * 1_000_000,
    ],
    ids=["braces", "boxed-braces", "boxes", "nested-boxes", "roots", "dollars", "spaces", "words", "NULs"],
)
def test_megabytes_of_nonsense_are_read_in_linear_time(strict, response):
    start = time.monotonic()
    (verdict,) = strict.score([response], ["17"])
    assert verdict.score == 0.0
    assert time.monotonic() - start < 3.0


def test_a_hostile_answer_does_not_harm_its_neighbours(strict):
    hostile = EXCEED_THE_TIME["tower"]
    verdicts = strict.score([r"\boxed{1}", hostile, r"\boxed{2}", hostile, r"\boxed{3}"], ["1", "2", "2", "2", "9"])
    assert [verdict.status for verdict in verdicts] == ["correct", "timeout", "correct", "timeout", "incorrect"]


def test_nothing_that_a_model_wrote_is_executed(verifier, tmp_path):
    code = f"__import__('os').system('touch {tmp_path}/made')"
    forms = [code, rf"\boxed{{{code}}}", rf"\boxed{{\text{{{code}}}}}", f"The answer is ${code}$", f"answer: 1+{code}"]
    forms += [rf"\boxed{{{code}, 1}}", rf"\boxed{{x = {code}}}", f"\\boxed{{\\{code}}}", f"\\boxed{{f({code})}}"]
    verdicts = verifier.score(forms, ["17"] * len(forms))
    assert {verdict.score for verdict in verdicts} == {0.0}
    assert list(tmp_path.iterdir()) == []


def test_sympy_evaluates_no_text_in_a_worker():
    functions = ["hpt.verify.math_grading:grade", "sympy:sympify"]
    texts = [
        "__import__('os').getpid()",
        "x.__class__",
        "sin(1)",
        "(1).real",
        "[1][0]",
        "lambda: 1",
        "print",
        "'a'.join",
    ]
    with closing(WorkerPool(functions, workers=1, timeout=20, memory_mb=512)) as pool:
        outcomes = pool.map("sympy:sympify", [(text,) for text in texts])
        assert {outcome.kind for outcome in outcomes} == {"failed"}
        assert all(outcome.value.startswith("SympifyError") for outcome in outcomes)


@pytest.fixture(scope="module")
def brief():
    with MathVerifier(workers=2, timeout=1.0, memory_mb=256) as verifier:
        yield verifier


FRAGMENTS = [
    *"0123456789xyn+-*/^=.,_()[]{}<>$%&!|~'\" \n\0é",
    *["\\frac", "\\boxed{", "\\sqrt", "\\text{", "\\left(", "\\begin{pmatrix}", "\\int", "\\infty", "\\cup", "\\pm"],
    *["\\\\", "answer is ", "and ", "\ud83d"],
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))
def test_any_text_gets_a_verdict(brief, text):
    verdicts = brief.score([text, f"\\boxed{{{text}}}"], ["17", "17"])
    for verdict in verdicts:
        assert verdict.status in ("correct", "incorrect", "unparsable", "timeout")
        assert verdict.score == (verdict.status == "correct")
        if verdict.status == "correct":
            assert any(character in text for character in "1789")  # 17, 34/2, 9+8, ...


def test_an_answer_outside_a_box_counts_unless_boxes_are_asked_for() -> None:
    responses, answers = ["The answer is 4.", r"So \boxed{4}.", r"\boxed{} 4"], ["4"] * 3
    with MathVerifier(workers=1) as verifier:
        assert [v.status for v in verifier.score(responses, answers)] == ["correct", "correct", "unparsable"]
    with MathVerifier(workers=1, boxed=True) as verifier:
        assert [v.status for v in verifier.score(responses, answers)] == ["unparsable", "correct", "unparsable"]
