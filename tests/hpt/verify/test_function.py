"""Verifiers that ask a user's function: scores, errors, what it prints, and replies that it forges."""

import time

import pytest
from asked_functions import asking

from hpt.support.errors import ConfigError, HptError, RewardError
from hpt.verify import FunctionVerifier, Verdict, Verifier, output, protocol
from hpt.verify.pool import DIED

pytestmark = pytest.mark.usefixtures("importable")


def test_scores_of_a_function():
    with asking("equal", workers=2) as verifier:
        verdicts = verifier.score(["a", "b", "c"], ["a", "a", "c"])
    assert [(verdict.status, verdict.score) for verdict in verdicts] == [
        ("correct", 1.0),
        ("incorrect", 0.0),
        ("correct", 1.0),
    ]


def test_partial_credit_is_kept_and_counts_as_incorrect():
    with asking("share") as verifier:
        assert verifier.score(["0.25", "1"], ["", ""]) == [Verdict("incorrect", 0.25), Verdict("correct", 1.0)]


def test_numbers_of_other_types_are_scores():
    with asking("fraction") as verifier:
        assert verifier.score(["3/4"], [""]) == [Verdict("incorrect", 0.75)]


@pytest.mark.parametrize(
    ("function", "response", "message"),
    [
        ("fail", "a", r"'judging:fail', .* gold answer 'gold', raised KeyError: 'no gold'"),
        ("leave", "a", "raised SystemExit: 3"),
        ("share", "2.5", r"returned 2\.5; a score is a bool or a number from 0 to 1"),
        ("share", "-0.1", r"returned -0\.1"),
        ("share", "nan", "returned nan"),
        ("nothing", "a", "returned None"),
    ],
)
def test_a_broken_function_is_an_error_and_not_a_wrong_answer(function, response, message):
    with asking(function) as verifier, pytest.raises(HptError, match=message):
        verifier.score([response], ["gold"])


class Custom(Verifier):
    grade = "judging:as_json"


@pytest.mark.parametrize(
    "returned", ["5", "null", '"ok"', "[]", '["correct"]', '["right", ""]', '["correct", 5]', '[["correct"], ""]', "{}"]
)
def test_a_verifier_whose_function_returns_another_form_says_so(returned):
    message = r"'judging:as_json', called on .* gold answer 'gold', returned .*; allowed: \(status, detail\)"
    with Custom(workers=1) as verifier:
        assert verifier.score(['["unparsable", "no box"]'], ["gold"]) == [Verdict("unparsable", 0.0, "no box")]
        with pytest.raises(RewardError, match=message):
            verifier.score([returned], ["gold"])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("judging:no_such", "module 'judging' has no 'no_such'"),
        ("no_such_module:f", "module 'no_such_module' cannot be imported"),
        ("broken:f", "OSError: no model here"),
    ],
)
def test_a_function_that_cannot_be_imported_is_an_error_on_entry(reference, message):
    with pytest.raises(ConfigError, match=message), FunctionVerifier(reference):
        pass


def test_functions_of_the_working_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "local_judging.py").write_text("def f(response, answer): return True")
    monkeypatch.chdir(tmp_path)
    with FunctionVerifier("local_judging:f", workers=1) as verifier:
        assert verifier.score(["a"], ["b"]) == [Verdict("correct", 1.0)]


def test_equal_pairs_are_asked_about_once(tmp_path):
    with asking("count", workers=2) as verifier:
        verdicts = verifier.score([str(tmp_path / "calls")] * 20, ["a"] * 20)
    assert verdicts == [Verdict("correct", 1.0)] * 20
    assert (tmp_path / "calls").read_text() == "x"


def test_what_a_function_prints_or_reads_does_not_meet_the_protocol():
    with asking("chatter") as verifier:
        assert verifier.score(["a", "b"], ["", ""]) == [Verdict("correct", 1.0)] * 2


def test_what_a_function_prints_is_shown_up_to_a_limit_and_a_sentence_says_so(capsys, caplog, monkeypatch):
    monkeypatch.setattr(output, "LIMIT", 10_000)
    with asking("flood") as verifier:
        assert verifier.score(["a", "b"], ["first", "second"]) == [Verdict("correct", 1.0)] * 2
    printed = capsys.readouterr().err
    assert printed.startswith("␛[2Jfirst\nxxx")
    assert 10_000 <= len(printed.replace("\n", "")) + printed.count("\n") < 10_100
    assert caplog.messages == [
        "verify.function: functions have printed 10,000 bytes; what they print from now on is dropped"
    ]


def test_what_a_function_printed_last_is_shown_before_its_pool_is_closed(monkeypatch):
    """Also where showing it takes a while."""
    shown = []
    monkeypatch.setattr(output, "_print", lambda line: (time.sleep(0.2), shown.append(line)))
    with asking("say") as verifier:
        verifier.score(["hello"], [""])
    assert shown == ["hello"]


def test_what_is_shown_has_one_limit_for_all_processes_of_a_pool(capsys, caplog, monkeypatch):
    monkeypatch.setattr(output, "LIMIT", 10_000)
    with asking("print_and_kill_parent") as verifier:
        for _ in range(2):  # each call is tried twice
            assert verifier.score(["a"], [""]) == [Verdict("timeout", 0.0, DIED)]
    assert capsys.readouterr().err.count("x") == 10_000
    assert len(caplog.messages) == 1


def test_a_reply_that_a_function_forges_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(protocol, "LONGEST_MESSAGE", 200_000)
    forged = ["garbage\n", "{}\n", "5\n", '{"call": "1", "value": true}\n', "[" * 100_000 + "\n"]
    with asking("forge") as verifier:
        for text in forged:
            with pytest.raises(RewardError, match="which is not its answer: does a function write to"):
                verifier.score([text], [""])
        with pytest.raises(RewardError, match="a reply that is longer than the limit of"):
            verifier.score(["x" * 300_000], [""])
        assert verifier.score([""], [""]) == [Verdict("correct", 1.0)]
