"""hpt eval that is interrupted, and what it refuses before a model is loaded."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from evaluations import QUICK, results

from hpt.commands.main import main
from hpt.records.files import CONFIG
from hpt.rollout import TransformersEngine


def ctrl_c():
    raise KeyboardInterrupt


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)


def sighup():
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(1)


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("interrupt", [ctrl_c, sigterm, sighup])
def test_an_interruption_keeps_what_was_done_and_closes_the_engine(world, hpt_eval, tmp_path, monkeypatch, interrupt):
    generate, closed = TransformersEngine.generate, []
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr(TransformersEngine, "close", lambda self: closed.append(self))

    def interrupted(self, prompts, sampling, seed, on_rollout):
        def until_the_fifth_question(index, place, rollout):
            if index == 4:
                interrupt()
            on_rollout(index, place, rollout)

        return generate(self, prompts, sampling, seed, until_the_fifth_question)

    monkeypatch.setattr(TransformersEngine, "generate", interrupted)
    data = ["--data", world.parent / "eval.jsonl", *QUICK, "--n", 2, "--batch-size", 4, "--output", tmp_path]
    code, out, err = hpt_eval(*data)
    assert (code, out) == (130, "")
    assert len(closed) == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers
    partial = tmp_path / "results.partial.jsonl"
    assert f"Results so far, 4 of 6 questions: {partial}" in err
    kept = [json.loads(line) for line in partial.read_text().splitlines()]
    assert [record["id"] for record in kept] == [f"eval-{i}" for i in range(50, 54)]
    assert not (tmp_path / "results.jsonl").exists()
    monkeypatch.undo()
    assert hpt_eval(*data)[0] == 0
    assert not partial.exists()
    assert results(tmp_path)[:4] == kept


def test_outside_of_the_main_thread_signals_are_left_alone(world, hpt_eval):
    codes = []
    data = ["--data", world.parent / "eval.jsonl", *QUICK, "--n", 1]
    thread = threading.Thread(target=lambda: codes.append(hpt_eval(*data)[0]))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "AIME23"], ["no benchmark of that name", "Did you mean AIME2"]),
        (
            ["--data", "{eval}", "--columns", "answer=gold"],
            ["looked for gold", "Name the column by --columns answer=NAME"],
        ),
        (["--data", "nothing.jsonl"], ["nothing.jsonl: no such file"]),
        (["--data", "AIME24", "--data-dir", "nowhere"], ["nowhere, the folder of benchmark files, cannot be read"]),
        (["--data", "AIME24", "--data", "aime2024"], ["AIME24, aime2024 do not have distinct names"]),
        (["--data", "{eval}", "--k", "9"], ["--k 9: pass@k needs k <= n, and n is 8 for eval"]),
        (["--data", "{eval}", "--template", "no place"], ["template must contain {question}"]),
        (
            ["--data", "{eval}", "--verifier", "letters"],
            ["--verifier letters: math, choice, boxed or a function", "module:function"],
        ),
        (
            ["--data", "{eval}", "--verifier", "choice"],
            ["field 'answer' is '", "cannot parse", "6 of 6 questions have the same problem"],
        ),
        (["--data", "{eval}", "--device", "abacus"], ["device = 'abacus'"]),
        (["--data", "{eval}", "--data-parallel", "2"], ["--data-parallel 2", "go with --engine vllm"]),
    ],
)
def test_errors_come_before_the_model_is_loaded(world, hpt_eval, monkeypatch, arguments, words):
    monkeypatch.setattr("hpt.api.evaluation_engine.load_model", None)
    filled = [argument.replace("{eval}", str(world.parent / "eval.jsonl")) for argument in arguments]
    code, out, err = hpt_eval(*filled, "--style", "plain")
    assert (code, out) == (2, "")
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--seed", "-1"), ("--seed", "1.5"), ("--columns", "gold=answer"), ("--columns", "answer"), ("--n", "0")),
        *(("--k", "a"), ("--k", "1,,2"), ("--top-p", "0"), ("--top-p", "half"), ("--temperature", "nan")),
    ],
)
def test_flags_say_what_they_take(capsys, flag, value):
    with pytest.raises(SystemExit):
        main(["eval", "model", "--data", "AMC", flag, value])
    error = capsys.readouterr().err
    assert f"argument {flag}: must be" in error
    assert value in error.splitlines()[-1]


def test_an_empty_checkpoint_is_named(hpt_eval, world, tmp_path):
    shutil.copy(world, tmp_path / CONFIG)
    (tmp_path / "checkpoints" / "step-000003").mkdir(parents=True)
    code, _, err = hpt_eval("--data", world.parent / "eval.jsonl", model=tmp_path)
    assert code == 2
    assert f"{tmp_path}/checkpoints/step-000003 is empty. Remove" in err.replace("\n", " ")


def test_a_run_without_a_checkpoint(hpt_eval, world, tmp_path):
    (tmp_path / CONFIG).write_text("steps: 1\n")
    code, _, err = hpt_eval("--data", world.parent / "eval.jsonl", model=tmp_path)
    assert code == 2
    assert "no checkpoint yet" in err
