"""hpt eval on a tiny model: files, benchmarks, several at once, flags."""

import importlib.util
import json
import re
import shutil

import pytest
from evaluations import QUICK, results

from hpt.commands.main import main
from hpt.data.benchmarks import BENCHMARKS
from hpt.evaluation.statistics import bootstrap_average
from hpt.rollout import Rollout, TransformersEngine

GPQA = [
    {"Question": f"1+{i}=", "Correct Answer": "1", "Record ID": f"r{i}"}
    | {f"Incorrect Answer {j}": f"{j + 1}" for j in (1, 2, 3)}
    for i in range(5)
]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """Made-up benchmark files, with questions in the characters of the world's tokenizer."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, count in (("AIME24", 3), ("AMC23", 4)):
        (folder / name).mkdir()
        records = [{"prompt": f"{i}+1=", "answer": f"{i + 1}"} for i in range(count)]
        (folder / name / "test.json").write_text(json.dumps(records))
    (folder / "GPQA-Diamond.json").write_text(json.dumps(GPQA))
    return folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


# ---- one file


def test_a_file(world, hpt_eval, tmp_path):
    data = world.parent / "eval.jsonl"
    code, out, err = hpt_eval("--data", data, *QUICK, "--n", 6, "--seed", 3, "--output", tmp_path / "out")
    assert code == 0
    assert str(tmp_path / "out") in err
    records = results(tmp_path / "out")
    assert [record["id"] for record in records] == [f"eval-{i}" for i in range(50, 56)]
    assert all(len(record["responses"]) == record["n"] == 6 for record in records)
    assert not (tmp_path / "out" / "results.partial.jsonl").exists()
    numbers = summary(tmp_path / "out")
    right = sum(record["correct"] for record in records)
    assert 0 < right < 36
    assert (numbers["correct"], numbers["count"]) == (right, 36)
    assert {"pass@1", "pass@2", "pass@4", "avg@6"} <= numbers.keys()
    assert numbers["settings"] == {
        "model": str(world.parent / "model"),
        "engine": "transformers",
        "dtype": "float32",
        "seed": 3,
        "prompt": {
            "style": "plain",
            "system": None,
            "template": "{question}",
            "bos": True,
            "end": "turn",
            "chat_template_kwargs": {},
        },
        "data": str(data),
        "verifier": "rewards:has_a_digit",
        "n": 6,
        "max_tokens": 8,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["all"][1:3] == ["6", f"{right / 36:.1%}"]
    assert rows["low"][1] == rows["high"][1] == "3"
    assert rows["4"][1] == f"{numbers['pass@4']['mean']:.1%}"
    assert rows["4"][3] == f"{numbers['grades']['high']['pass@4']['mean']:.1%}"
    assert "avg@6" in out


def test_the_seed_decides_and_batches_differ(world, hpt_eval, tmp_path):
    def responses(name, *more):
        folder = tmp_path / name
        assert hpt_eval("--data", tmp_path / "same.jsonl", *QUICK, "--n", 4, *more, "--output", folder)[0] == 0
        return [record["responses"] for record in results(folder)]

    lines = [{"prompt": "1+1=", "answer": "2"}] * 3
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one = responses("one", "--batch-size", 4)
    assert one == responses("two", "--batch-size", 4)
    assert one != responses("three", "--batch-size", 4, "--seed", 1)
    # One prompt in three batches: with one seed for all of them the responses would be the same.
    assert one[0] != one[1] != one[2] != one[0]


def test_vllm_is_asked_all_questions_at_once(world, hpt_eval, tmp_path, monkeypatch):
    asked = []

    class StandIn:
        def __init__(self, settings, *, stop_ids):
            asked.append((settings, list(stop_ids)))

        def generate(self, prompts, sampling, seed, on_rollout):
            asked.append(len(prompts))
            return one_token(self, prompts, sampling, seed, on_rollout)

        def close(self):
            asked.append("closed")

    monkeypatch.setattr("hpt.api.evaluation_engine.require", lambda *arguments: None)
    monkeypatch.setattr("hpt.api.evaluation_engine.check_platform", lambda device: None)
    monkeypatch.setattr("hpt.api.evaluation_engine.VllmEngine", StandIn)
    monkeypatch.setattr("hpt.api.evaluation_engine.ParallelVllmEngine", None)
    data = ["--data", world.parent / "eval.jsonl", *QUICK, "--n", 3, "--output", tmp_path]
    assert hpt_eval(*data, "--engine", "vllm", "--dtype", "bfloat16", "--memory-share", 0.5)[0] == 0
    (settings, stops), *rest = asked
    assert rest == [6, "closed"]
    assert stops == [1]
    assert (settings.model.path, settings.model.dtype) == (str(world.parent / "model"), "bfloat16")
    assert (settings.memory_share, settings.loads_weights) == (0.5, True)
    assert settings.longest_sequence == max(len(record["prompt"]) for record in results(tmp_path)) + 8
    assert summary(tmp_path)["settings"]["engine"] == "vllm"
    monkeypatch.setattr("hpt.api.evaluation_engine.ParallelVllmEngine", StandIn)
    assert hpt_eval(*data, "--engine", "vllm", "--data-parallel", 2)[0] == 0
    assert asked[3][0].data_parallel == 2


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_named(world, hpt_eval):
    code, _, err = hpt_eval("--data", world.parent / "eval.jsonl", "--engine", "vllm")
    assert code == 2
    assert "--engine vllm needs the package vllm: pip install 'hpt[vllm]'" in " ".join(err.split())


def test_columns_k_and_limit(hpt_eval, tmp_path):
    lines = [{"ask": "1+1=", "gold": {"value": 2}}, {"ask": "1+2=", "gold": {"value": 3}}]
    (tmp_path / "odd.json").write_text(json.dumps(lines))
    arguments = ["--data", tmp_path / "odd.json", *QUICK, "--n", 5, "--k", "3,1", "4", "--limit", 1]
    columns = ["--columns", "prompt=ask,answer=gold.value", "--output", tmp_path / "out"]
    assert hpt_eval(*arguments, *columns)[0] == 0
    assert [record["answer"] for record in results(tmp_path / "out")] == ["2"]
    assert {key for key in summary(tmp_path / "out") if key.startswith("pass@")} == {"pass@1", "pass@3", "pass@4"}
    code, _, err = hpt_eval(*arguments)
    assert code == 2
    assert "no record has a column for the prompt" in err


def test_a_checkpoint_has_the_prompts_and_the_verifier_of_its_run(world, hpt_eval, benchmarks, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_bytes(world.read_bytes())
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001"
    shutil.copytree(world.parent / "model", checkpoint)
    data = ["--data", world.parent / "eval.jsonl", "--data", "AMC", "--data-dir", benchmarks]
    assert hpt_eval(*data, "--max-tokens", 8, "--n", 2, "--output", tmp_path / "out", model=checkpoint)[0] == 0
    assert summary(tmp_path / "out")["settings"]["prompt"]["style"] == "plain"
    parts = summary(tmp_path / "out")["benchmarks"]
    assert {name: part["verifier"] for name, part in parts.items()} == {"eval": "rewards:has_a_digit", "AMC": "math"}


def test_a_checkpoint_that_is_not_what_was_written_is_refused(world, hpt_eval, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", str(world), f"output={run}", "method=sft", "steps=1", "eval.every=0"]) == 0
    weights = run / "checkpoints" / "step-000001" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 64
    weights.write_bytes(content)
    capsys.readouterr()
    for model in (run, weights.parent):
        assert main(["eval", str(model), "--data", str(world.with_name("eval.jsonl"))]) == 2
        assert "model.safetensors is not what was written" in " ".join(capsys.readouterr().err.split())
    weights.with_name("checksums.txt").unlink()
    assert main(["eval", str(run), "--data", str(world.with_name("eval.jsonl"))]) == 2
    assert "checksums.txt is missing" in " ".join(capsys.readouterr().err.split())


def test_boxed_is_strict(hpt_eval, tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}')
    monkeypatch.setattr(TransformersEngine, "generate", one_token)
    monkeypatch.setattr("hpt.rollout.responses.response_text", lambda tokenizer, rollout: "The answer is 2")
    flags = ["--style", "plain", "--n", 1, "--verifier", "boxed", "--output", tmp_path]
    assert hpt_eval("--data", tmp_path / "data.jsonl", *flags)[0] == 0
    assert summary(tmp_path)["statuses"] == {"correct": 0, "incorrect": 0, "unparsable": 1, "timeout": 0}


def test_greedy_takes_one_response(world, hpt_eval, tmp_path):
    arguments = ["--data", world.parent / "eval.jsonl", *QUICK, "--temperature", 0, "--output", tmp_path]
    code, out, _ = hpt_eval(*arguments)
    assert code == 0
    assert "pass@1" in out
    assert {record["n"] for record in results(tmp_path)} == {1}


def test_without_a_chat_template_prompts_are_plain(world, hpt_eval, tmp_path):
    data = ["--data", world.parent / "eval.jsonl", "--output", tmp_path]
    code, _, err = hpt_eval(*data, *QUICK[2:])
    assert code == 0
    assert "no chat template: its prompts are plain" in err
    assert summary(tmp_path)["settings"]["prompt"]["style"] == "plain"
    code, _, err = hpt_eval(*data, "--style", "chat", *QUICK[2:])
    assert code == 2
    assert "has no chat template" in err


# ---- benchmarks


def test_several_benchmarks(hpt_eval, benchmarks, tmp_path):
    arguments = ["--data", "AIME24", "--data", "amc", "--data-dir", benchmarks, *QUICK, "--output", tmp_path]
    code, out, _ = hpt_eval(*arguments)
    assert code == 0
    shares = {}
    for name, count in (("AIME24", 3), ("AMC", 4)):
        records = results(tmp_path / name)
        assert len(records) == count
        assert {record["n"] for record in records} == {32}  # the literature's
        shares[name] = [record["correct"] / 32 for record in records]
    numbers = summary(tmp_path)
    assert numbers["average"] == bootstrap_average(list(shares.values()))._asdict()
    assert numbers["average"]["mean"] == pytest.approx((sum(shares["AIME24"]) / 3 + sum(shares["AMC"]) / 4) / 2)
    assert numbers["benchmarks"]["AMC"]["avg@32"] == summary(tmp_path / "AMC")["avg@32"]
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["AMC"][1:4] == ["4", "avg@32", f"{sum(shares['AMC']) / 4:.1%}"]
    assert rows["average"][1] == f"{numbers['average']['mean']:.1%}"


def test_a_benchmark_has_the_same_results_alone_and_among_others(hpt_eval, benchmarks, tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_DATA_DIR", str(benchmarks))
    several = ["--data", "AIME24", "--data", "AMC", "--n", 2, "--output", tmp_path / "several"]
    assert hpt_eval(*several, *QUICK)[0] == 0
    assert hpt_eval("--data", "AMC", *QUICK, "--n", 2, "--output", tmp_path / "alone")[0] == 0
    assert results(tmp_path / "several" / "AMC") == results(tmp_path / "alone")


def test_multiple_choice_is_graded_by_letters(hpt_eval, benchmarks, tmp_path, monkeypatch):
    """A model that always answers B is right where the shuffle put the right choice there."""

    monkeypatch.setattr(TransformersEngine, "generate", one_token)
    monkeypatch.setattr("hpt.rollout.responses.response_text", lambda tokenizer, rollout: r"\boxed{B}")
    data = ["--data", "GPQA", "--data", "AIME24", "--data", "AMC", "--data-dir", benchmarks]
    code, out, _ = hpt_eval(*data, "--style", "plain", "--output", tmp_path)
    assert code == 0
    records = results(tmp_path / "GPQA-Diamond")
    assert [record["correct"] for record in records] == [int(record["answer"] == "B") for record in records]
    assert {record["answer"] for record in records} > {"B"}
    assert {record["n"] for record in records} == {1}
    assert summary(tmp_path)["benchmarks"]["GPQA-Diamond"]["verifier"] == "choice"
    assert summary(tmp_path)["average, mathematics"]["mean"] == 0.0
    assert "average, multiple choice" not in out  # one benchmark has no average


# ---- what is printed


def test_tables_fit_80_columns_and_narrow_pipes_wrap_nothing(world, hpt_eval, benchmarks, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(TransformersEngine, "generate", one_token)
    data = ["--data", world.parent / "eval.jsonl", "--n", 300]
    one = hpt_eval(*data, *QUICK)[1]
    several = hpt_eval(*data, "--data", "GPQA", "--data-dir", benchmarks, *QUICK)[1]
    for out in (one, several):
        lines = out.splitlines()[1:]  # the title has a path of any length
        assert 30 < max(map(len, lines)) <= 80
        assert "…" not in out
    assert re.search(r"^256 +\d+\.\d%", one, re.MULTILINE)
    assert "GPQA-Diamond         5" in several


def one_token(self, prompts, sampling, seed, on_rollout):
    groups = [[Rollout([3 + i % 9], [0.0], "length") for i in range(sampling.n)] for _ in prompts]
    for index, group in enumerate(groups):
        for place, rollout in enumerate(group):
            on_rollout(index, place, rollout)
    return groups


def test_help_lists_every_benchmark_and_the_variable(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    out = capsys.readouterr().out
    assert all(benchmark.name in out for benchmark in BENCHMARKS)
    assert "$HPT_DATA_DIR" in out
