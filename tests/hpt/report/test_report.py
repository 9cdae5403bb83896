"""hpt.report: the page shows the numbers of metrics.jsonl, whichever a run has and whatever a model wrote."""

import base64
import errno
import hashlib
import json
import math
import os
import random
import re
import statistics
import zlib
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from hpt.records.files import read_metrics
from hpt.report import accuracy_table, report, summary_figure
from hpt.report.curves import Curve
from hpt.report.evaluations import natural_key
from hpt.report.figures import FIGURES
from hpt.report.model_card import model_card
from hpt.report.panels.accuracy import draw_before_after, draw_by_grade
from hpt.report.panels.quantities import OFF_POLICY, REWARD, draw_quantity
from hpt.report.panels.stacks import draw_gate_counts, has_gate_counts
from hpt.report.runs import group_runs, load_runs
from hpt.report.tables import method_rows
from hpt.support.errors import HptError

GRADES = ("1 digit", "2 digits", "10 digits")
LIMIT = 64  # tokens per rollout


def write_run(
    folder: Path, method="hpt", seed=0, steps=24, *, done=None, questions=16, n=8, eval_every=8, eval_n=4, **changes
) -> Path:
    """A run as the trainer writes it, of a model that gets better at each grade with the steps."""
    random_ = random.Random(f"{method} {seed}")
    folder.mkdir(parents=True)
    config = {
        "output": str(folder),
        "steps": steps,
        "seed": seed,
        "method": method,
        "model": {"path": "runs/tiny-qwen2", "dtype": "float32"},
        "data": {"train": "runs/train.jsonl"},
        "gate": {"kind": "switch", "gamma": 0},
        "rollout": {"n": n},
    } | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "rollouts").mkdir()
    speed = {"hpt": 1.0, "grpo": 0.45, "sft": 1.1}.get(method, 0.8)
    lines = []
    for step in range((steps if done is None else done) + 1):
        line = {"step": step}
        skill = speed * (1 - math.exp(-2.2 * step / steps))
        chances = {
            g: min(0.99, b + 0.6 * skill * w)
            for g, b, w in zip(GRADES, (0.5, 0.12, 0.01), (0.6, 1.0, 0.5), strict=True)
        }
        if step:
            line |= training_line(random_, method, step, skill, chances, questions, n, folder)
        if step % eval_every == 0 or step == steps:
            right = answered(folder, step, chances, eval_n, random.Random(f"{method} {seed} {step}"))
            line |= {"eval/accuracy": sum(right.values()) / 300, "eval/correct": sum(right.values()), "eval/count": 300}
            for grade, count in right.items():
                line |= {
                    f"eval/accuracy/{grade}": count / 100,
                    f"eval/correct/{grade}": count,
                    f"eval/count/{grade}": 100,
                }
            line |= {"eval/length": 30.0, "time/eval": 1.5}
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def answered(folder, step, chances, n, random_) -> dict[str, int]:
    """Writes the evaluation after `step`, with 100 responses per grade; returns how many are right."""
    rows = []
    for grade, chance in chances.items():
        for index in range(100 // n):
            easiness = 1.2 * (index + 0.5) / (100 // n) - 0.6
            lengths = [random_.randint(9, LIMIT) for _ in range(n)]
            correct = sum(random_.random() < chance + easiness for _ in range(n))
            question = {"id": f"{grade} {index}", "grade": grade, "prompt": f"{index} in {grade}", "answer": "1"}
            rows.append({"step": step} | question | {"n": n, "correct": correct, "lengths": lengths})
    random_.shuffle(rows)
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {grade: sum(row["correct"] for row in rows if row["grade"] == grade) for grade in GRADES}


def training_line(random_, method, step, skill, chances, questions, n, folder):
    line = {
        "gate/questions": questions,
        "train/loss": 0.4 - 0.2 * skill,
        "train/grad_norm": random_.lognormvariate(0, 0.4),
    }
    line |= {
        "train/lr": 1e-4,
        "train/updates": 1,
        "train/skipped": int(line["train/grad_norm"] > 2.2),
        "time/train": 0.9,
    }
    if method == "sft":
        tokens = 30 * questions
        nats = tokens * (0.5 - 0.2 * skill)
        return line | {"gate/sft": questions, "entropy/sum": nats, "entropy/count": tokens, "time/step": 1.0}
    grades = random_.choices(GRADES, k=questions)
    groups = [[random_.random() < chances[grade] for _ in range(n)] for grade in grades]
    lengths = [[min(LIMIT, int(random_.gauss(34 + 8 * skill, 9))) for _ in range(n)] for _ in range(questions)]
    statuses = [
        ["correct" if x else random_.choices(("incorrect", "unparsable", "timeout"), (9, 2, 0.1))[0] for x in g]
        for g in groups
    ]
    rows = [
        {"step": step, "id": f"q{step}-{i}", "grade": grade, "prompt": f"{i} + {step} = ?", "answer": str(i + step)}
        | {
            "responses": [f"{i} + {step}\nis \\boxed{{{i + step if x else '?'}}}" for x in group],
            "scores": [float(x) for x in group],
        }
        | {"statuses": statuses[i], "finish_reasons": ["length" if k == LIMIT else "stop" for k in lengths[i]]}
        | {"lengths": lengths[i], "P": sum(group) / n, "alpha": float(any(group)), "beta": float(not any(group))}
        for i, (grade, group) in enumerate(zip(grades, groups, strict=True))
    ]
    (folder / "rollouts" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    none, everyone = sum(not any(g) for g in groups), sum(all(g) for g in groups)
    tokens = sum(map(sum, lengths))
    verdicts = [status for group in statuses for status in group]
    return line | {
        "reward/sum": float(sum(map(sum, groups))),
        "reward/count": questions * n,
        "gate/sft": none if method == "hpt" else 0,
        "gate/none": none,
        "gate/some": questions - none - everyone,
        "gate/all": everyone,
        "entropy/sum": tokens * (0.62 - 0.3 * skill + random_.gauss(0, 0.02)),
        "entropy/count": tokens,
        "response/length_sum": tokens,
        "response/count": questions * n,
        "response/truncated": sum(k == LIMIT for g in lengths for k in g),
        "rollout/mismatch_kl_sum": 1e-7 * tokens * random_.random(),
        "rollout/mismatch_tokens": tokens,
        "time/rollout": random_.gauss(2.4, 0.1),
        "time/verify": 0.1,
        "time/step": 3.5,
        **{f"verify/{status}": verdicts.count(status) for status in ("correct", "incorrect", "unparsable", "timeout")},
    }


class Page(HTMLParser):
    """The parts of a page that tests look at. It fails if a tag is left open or closed in the wrong order."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in self.VOID:
            return
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.tables[-1][-1].append(self.texts[tag][-1].strip())

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


def rendered(table) -> list[list[str]]:
    """A rich table's cells as text, row by row."""
    console = Console(width=200)
    columns = [list(column.cells) for column in table.columns]
    assert console.render_lines(table)  # it can be shown
    return [[str(cell) for cell in row] for row in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One finished run and the page of its report."""
    folder = write_run(tmp_path_factory.mktemp("one") / "demo", steps=30, eval_every=10)
    return folder, report([folder])


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two methods with two seeds each, and the page of their report."""
    root = tmp_path_factory.mktemp("several")
    folders = [write_run(root / f"{m}-{s}", m, s, steps=12, eval_every=6) for m in ("hpt", "sft") for s in (0, 1)]
    return folders, report(folders)


# Reading


def test_a_smoothed_value_is_the_ratio_of_the_sums_over_a_window():
    above, below = np.array([1.0, 0, 9, 2, 5]), np.array([1.0, 10, 10, 0, 5])
    curve = Curve(np.arange(5), above, below)
    expected = [1 / 11, 10 / 21, 11 / 20, 16 / 15, 7 / 5]  # the mean of means would begin with (1/1 + 0/10) / 2
    np.testing.assert_allclose(curve.values(3), expected, rtol=1e-15)
    np.testing.assert_array_equal(curve.values(), [1.0, 0.0, 0.9, np.nan, 1.0])


def test_the_window_is_odd_and_never_wider_than_the_run():
    for size in [*range(1, 400), 5000]:
        curve = Curve(np.arange(size), np.ones(size), np.ones(size))
        assert curve.window % 2 == 1
        assert curve.window <= min(size, 25)
        np.testing.assert_array_equal(curve.values(curve.window), np.ones(size))


def test_a_groups_curve_adds_up_its_runs_at_their_common_steps(tmp_path):
    write_run(tmp_path / "a", seed=0, steps=12)
    write_run(tmp_path / "b", seed=1, steps=12, done=9)
    (group,) = group_runs(load_runs([tmp_path / "a", tmp_path / "b"]))
    curve = group.curve("reward/sum", "reward/count")
    assert curve.steps.tolist() == list(range(1, 10))
    a, b = (read_metrics(tmp_path / name)[1:10] for name in "ab")
    for value, x, y in zip(curve.values(), a, b, strict=True):
        assert value == (x["reward/sum"] + y["reward/sum"]) / (x["reward/count"] + y["reward/count"])


def test_a_null_is_left_out_and_not_read_as_zero(tmp_path):
    folder = write_run(tmp_path / "run", steps=4)
    lines = read_metrics(folder)
    lines[2]["train/grad_norm"] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = load_runs([folder])
    curve = run.curve("train/grad_norm", None)
    assert curve.steps.tolist() == [1, 3, 4]
    assert curve.values().tolist() == [lines[step]["train/grad_norm"] for step in (1, 3, 4)]


def test_runs_are_grouped_by_settings_and_not_by_seed_or_folder(tmp_path):
    gammas = [
        write_run(tmp_path / f"g{g}-{s}", seed=s, gate={"kind": "switch", "gamma": g}) for g in (0, 2) for s in (0, 1)
    ]
    grpo = write_run(tmp_path / "grpo", "grpo")
    groups = group_runs(load_runs([*gammas, grpo, gammas[0]]))
    assert [(group.label, [run.name for run in group.runs]) for group in groups] == [
        ("hpt, gate.gamma=0", ["g0-0", "g0-1"]),
        ("hpt, gate.gamma=2", ["g2-0", "g2-1"]),
        ("grpo", ["grpo"]),
    ]


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path):
    folders = [write_run(tmp_path / name / "demo", steps=1) for name in "ab"]
    assert [run.name for run in load_runs(folders)] == ["a/demo", "b/demo"]


@pytest.mark.parametrize(
    ("missing", "message"), [("metrics.jsonl", r"it has no metrics\.jsonl"), ("config.yaml", r"it has no config\.yaml")]
)
def test_a_folder_that_is_no_run_is_named(tmp_path, missing, message):
    folder = write_run(tmp_path / "run", steps=1)
    (folder / missing).unlink()
    with pytest.raises(HptError, match=f"{folder} is not a run: {message}"):
        report([folder])
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", "", r"metrics\.jsonl has no steps yet"),
        ("metrics.jsonl", '{"step": 1, "rew', r"metrics\.jsonl has no steps yet"),
        ("metrics.jsonl", '{"step": 0}\nbroken\n{"step": 2}\n', r"metrics\.jsonl, line 2: broken record"),
        ("config.yaml", "a: [", r"config\.yaml cannot be read"),
        ("config.yaml", "- a", r"config\.yaml: expected a mapping of settings, got list"),
    ],
)
def test_unreadable_records_are_named(tmp_path, file, content, message):
    folder = write_run(tmp_path / "run", steps=1)
    (folder / file).write_text(content)
    with pytest.raises(HptError, match=message):
        report([folder])
    with pytest.raises(HptError, match=message):
        summary_figure([folder], tmp_path / "summary.png")


def test_no_run_at_all_is_an_error():
    with pytest.raises(HptError, match="no run given"):
        report([])


# Figures


def test_lines_show_each_step_and_the_sums_over_a_window(one):
    folder, _ = one
    metrics = read_metrics(folder)[1:]
    axes = Figure().add_subplot()
    assert draw_quantity(axes, group_runs(load_runs([folder])), REWARD)
    thin, thick = axes.lines
    rewards, counts = ([line[f"reward/{part}"] for line in metrics] for part in ("sum", "count"))
    np.testing.assert_allclose(thin.get_ydata(), np.divide(rewards, counts), rtol=1e-12)
    expected = [sum(rewards[max(0, i - 1) : i + 2]) / sum(counts[max(0, i - 1) : i + 2]) for i in range(30)]
    np.testing.assert_allclose(thick.get_ydata(), expected, rtol=1e-12)


def test_stacked_gate_counts_fill_the_whole(one):
    folder, _ = one
    axes = Figure().add_subplot()
    (group,) = group_runs(load_runs([folder]))
    assert has_gate_counts(group)
    draw_gate_counts(axes, group, "gates", sft_line=True)
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in axes.collections]
    assert len(tops) == 3
    assert tops[-1] == pytest.approx(1.0, abs=1e-12)
    sent = [line["gate/sft"] / line["gate/questions"] for line in read_metrics(folder)[1:]]
    assert axes.lines[0].get_ydata()[0] == pytest.approx((sent[0] + sent[1]) / 2, abs=1e-12)


def test_figures_are_images_on_disk_and_inline_in_the_page(one):
    folder, path = one
    images = {image.stem: imread(image) for image in (folder / "figures").iterdir()}
    assert set(images) == set(FIGURES) - {"clip_share", "gate_ablation", "off_policy"}  # of one run of hpt
    for image in images.values():
        assert image.shape[0] > 400
        assert image.shape[1] > 900
        assert image[..., :3].std() > 0.01  # not blank
    page = Page(path)
    assert page.tags.count("svg") == 2 * (len(images) - 1)  # wide and narrow; the summary repeats the others
    assert "Clipped tokens: no step records clip/count and clip/tokens." in page.texts["li"]


def test_the_settings_of_matplotlib_stay_as_they_were(one, tmp_path):
    before = dict(matplotlib.rcParams)
    summary_figure([one[0]], tmp_path / "deep" / "down" / "summary.png")
    assert dict(matplotlib.rcParams) == before
    assert imread(tmp_path / "deep" / "down" / "summary.png").shape == (1024, 1600, 4)


def test_a_full_disk_names_the_file(one, tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(HptError, match=r"summary\.png: No space left on device"):
        summary_figure([one[0]], tmp_path / "summary.png")


# Page


def test_the_page_needs_nothing_but_itself(one, several):
    for _, path in (one, several):
        page = Page(path)
        assert not {"iframe", "object", "embed", "img", "base"} & set(page.tags)
        for _, name, value in page.attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("#", "data:image/png;base64,")) or value == "data:,"
            assert "://" not in value or name.startswith("xmlns"), f"{name}={value}"
            assert not name.startswith("on")
        css = "".join(page.texts["style"])
        assert "@import" not in css
        assert "url(" not in css.replace("url(#", "").replace("url(data:font/woff2;base64,", "")
        (policy,) = [value for _, _, value in page.attributes if value.startswith("default-src 'none'; script-src")]
        programs = [text for text in page.texts["script"] if "function" in text]
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in programs]
        assert policy.split("; ")[1].split()[1:] == [f"'sha256-{digest}'" for digest in digests]


def test_ids_are_unique_and_every_reference_has_its_target(one, several):
    for _, path in (one, several):
        page = Page(path)
        ids = [value for _, name, value in page.attributes if name == "id"]
        assert len(ids) == len(set(ids)) > 100
        references = {value[1:] for _, name, value in page.attributes if name == "xlink:href" and value[0] == "#"}
        clips = {value[5:-1] for _, name, value in page.attributes if name == "clip-path"}
        assert references | clips <= set(ids)
        assert references


def test_the_page_of_a_run_states_its_numbers(one):
    folder, path = one
    page = Page(path)
    metrics = read_metrics(folder)
    first, last = metrics[0], metrics[-1]
    rows = {row[0]: row[1:] for row in page.tables[-1]}
    for grade in (*GRADES, "all"):
        key = "" if grade == "all" else f"/{grade}"
        before, after = (line[f"eval/correct{key}"] / line[f"eval/count{key}"] for line in (first, last))
        assert rows[grade] == [
            f"{last[f'eval/count{key}']}",
            f"{before:.1%}",
            f"{after:.1%}",
            f"{100 * (after - before):+.1f}",
        ]
    assert list(rows)[1:] == [*GRADES, "all"]  # in the order of their numbers
    shown = dict(zip(page.texts["dt"], (" ".join(text.split()) for text in page.texts["dd"]), strict=True))
    seconds = sum(line.get("time/step", 0) + line.get("time/eval", 0) for line in metrics)
    assert shown == {
        "held-out accuracy": f"{rows['all'][1]} → {rows['all'][2]} {rows['all'][3]} points",
        "method": "hpt",
        "steps": "30",
        "seed": "0",
        "time": f"{seconds / 60:.1f} min",
    }
    assert (folder / "config.yaml").read_text() in page.texts["pre"]


def test_the_same_run_gives_the_same_page(one):
    folder, path = one
    assert report([folder], folder.parent / "again").read_bytes() == path.read_bytes()


def test_what_a_model_wrote_stays_text(tmp_path):
    folder = write_run(tmp_path / "a <i>&amp; $x_1$", steps=2, model={"path": "<script>alert(0)</script>"})
    evil = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\x00\ud800"
    rollouts = folder / "rollouts" / "step-000002.jsonl"
    rows = [json.loads(line) for line in rollouts.read_text().splitlines()]
    for row in rows:
        row |= {"prompt": [{"role": "user", "content": evil}], "answer": evil, "id": evil, "grade": evil}
        row["responses"] = [evil + "x" * 9000] * len(row["responses"])
    rollouts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    path = report([folder])
    page = Page(path)
    assert not {"img", "i"} & set(page.tags)
    assert "alert(" not in path.read_text().replace("&lt;script&gt;alert(0)", "")  # of the recipe, as text
    index, *steps = [text for text in page.texts["script"] if re.fullmatch("[A-Za-z0-9+/=]+", text)]
    assert json.dumps(evil).encode() in zlib.decompress(base64.b64decode(index))
    question = json.loads(zlib.decompress(base64.b64decode(steps[1])))[0]
    assert (question["prompt"], question["answer"]) == (f"user: {evil}", evil)
    assert question["responses"] == [evil + "x" * 9000] * 8


def test_a_run_without_rollouts_has_no_figures_of_them(tmp_path):
    folder = write_run(tmp_path / "sft", "sft", steps=3)
    (folder / "figures").mkdir()
    (folder / "figures" / "reward.png").write_bytes(b"of an earlier report")
    page = Page(report([folder]))
    assert {image.stem for image in (folder / "figures").iterdir()} == {
        *("summary", "sft_share", "accuracy", "accuracy_by_grade", "pass_at_k", "question_map"),
        *("entropy", "grad_norm", "time"),
    }
    assert "Reward: no step records reward/sum and reward/count." in page.texts["li"]
    assert "Gate counts: no step records gate/none, gate/some and gate/all." in page.texts["li"]


def test_off_policy_rows_have_a_figure(tmp_path):
    folder = write_run(tmp_path / "luffy", "luffy", steps=3)
    lines = [line | {"train/rows": 8, "train/rows_off_policy": 1} for line in read_metrics(folder)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (group,) = group_runs(load_runs([folder]))
    assert set(group.curve(OFF_POLICY.numerator, OFF_POLICY.denominator).values(1)) == {1 / 8}
    report([folder])
    assert (folder / "figures" / "off_policy.png").is_file()


@pytest.mark.parametrize("done", [0, 1])
def test_a_run_that_has_just_begun(tmp_path, done):
    folder = write_run(tmp_path / "run", steps=40, done=done)
    page = Page(report([folder]))
    assert any(f"step {done} of 40" in text for text in page.texts["span"])
    assert ("Reward: no step records reward/sum and reward/count." in page.texts["li"]) == (done == 0)
    assert any(text.startswith("Held-out accuracy by grade: fewer than two") for text in page.texts["li"])


def test_a_run_without_evaluation(tmp_path):
    folder = write_run(tmp_path / "run", steps=2)
    lines = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in read_metrics(folder)[1:]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change = {"what": "the content of <b>.jsonl", "before": None, "now": "3f"}
    (folder / "changes.jsonl").write_text(json.dumps({"step": 1, "changes": [change]}) + "\n")
    page = Page(report([folder]))
    sentence = "Resumed after step 1 with changes: the content of <b>.jsonl (was null, is 3f)."
    assert f"run: {sentence}" in page.texts["li"]
    assert sentence in str(model_card(load_runs([folder])[0], 2))
    assert page.tables == []
    assert "not evaluated" in page.texts["dd"][0]
    assert accuracy_table(folder).row_count == 0


# Several runs


def final_counts(folder: Path) -> list[int]:
    path = max((folder / "eval").iterdir())
    return [json.loads(line)["correct"] for line in path.read_text().splitlines()]


def test_the_tables_of_several_runs(several):
    folders, path = several
    methods, runs = Page(path).tables
    evaluated = {folder.name: [line for line in read_metrics(folder) if "eval/count" in line] for folder in folders}
    for row in methods[1:]:
        name, count, before, after, change, *grades, best_of_4, rollout, train, _ = row
        assert count == "2"
        pairs = [(evaluated[f"{name}-{seed}"][0], evaluated[f"{name}-{seed}"][-1]) for seed in (0, 1)]
        first, last = ([100 * pair[i]["eval/correct"] / pair[i]["eval/count"] for pair in pairs] for i in (0, 1))
        moved = [b - a for a, b in zip(first, last, strict=True)]
        assert before == f"{statistics.mean(first):.1f} ± {statistics.stdev(first):.1f}"
        assert after == f"{statistics.mean(last):.1f} ± {statistics.stdev(last):.1f}"
        assert change == f"{statistics.mean(moved):+.1f} ± {statistics.stdev(moved):.1f}"
        for grade, cell in zip(GRADES, grades, strict=True):
            values = [100 * pair[1][f"eval/correct/{grade}"] / pair[1][f"eval/count/{grade}"] for pair in pairs]
            assert cell == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
        solved = [
            100 * statistics.mean(map(bool, final_counts(folder))) for folder in folders if folder.name[:3] == name
        ]  # pass@n of n responses is the share of questions that have a right one
        assert best_of_4 == f"{statistics.mean(solved):.1f} ± {statistics.stdev(solved):.1f}"
        assert (train, rollout == "–") == ("10.8 s", name == "sft")
    assert methods[0][5:] == [*(f"on {grade}" for grade in GRADES), "pass@4", "rollout", "train", "time per run"]
    for folder, row in zip(folders, runs[1:], strict=True):
        cells = dict(zip(runs[0], row, strict=True))
        lines = read_metrics(folder)[1:]
        sent = sum(line["gate/sft"] for line in lines) / sum(line["gate/questions"] for line in lines)
        assert (cells["run"], cells["seed"], cells["steps"]) == (folder.name, folder.name[-1], "12")
        assert cells["sent to SFT"] == f"{sent:.1%}"


def test_a_report_of_several_runs_is_written_beside_them_and_skipped_the_next_time(several):
    folders, path = several
    root = folders[0].parent
    assert path == root / "report" / "report.html"
    before = path.read_bytes()
    assert report(sorted(root.iterdir())) == path  # as `hpt report runs/*` names it
    assert len(Page(path).tables[1]) == len(folders) + 1
    path.write_bytes(before)


# Terminal


def test_the_accuracy_table_has_every_grade_before_and_after(one):
    folder, path = one
    assert rendered(accuracy_table(folder)) == Page(path).tables[-1][1:]


def test_grades_are_sorted_by_their_numbers_whatever_digits_they_have():
    long = "9" * 5000
    grades = ["", "1 digit", "2 digits", "007", "10 digits", f"1{long}", "level 2", "level 10", "²", "level ²"]
    in_order = ["", "1 digit", "2 digits", "007", "10 digits", f"1{long}", "level 2", "level 10", "level ²", "²"]
    assert sorted(grades, key=natural_key) == in_order
    assert sorted([f"2{long}", f"1{long}", "3"], key=natural_key) == ["3", f"1{long}", f"2{long}"]


def test_a_grade_may_be_called_all(tmp_path):
    folder = write_run(tmp_path / "run", steps=9, eval_every=9)
    metrics = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(metrics.replace("/1 digit", "/all"))
    last = read_metrics(folder)[-1]
    expected = [
        [last[f"eval/correct{key}"] / last[f"eval/count{key}"] for key in keys]
        for keys in (("/2 digits", "/10 digits", "/all", ""), ("/all", ""))
    ]
    assert expected[1][0] != expected[1][1]

    rows = rendered(accuracy_table(folder))
    assert [row[0] for row in rows] == ["2 digits", "10 digits", "all", "all"]
    assert [row[3] for row in rows] == [f"{value:.1%}" for value in expected[0]]

    (run,) = load_runs([folder])
    groups = group_runs([run])
    (before_after, by_grade) = Figure().subplots(2)
    draw_before_after(before_after, run)
    ends = [text.get_text().split(" → ")[1] for text in before_after.texts]
    assert ends == [f"{value:.0%}" for value in reversed(expected[0])]
    assert [text.get_weight() for text in before_after.texts] == ["bold", "normal", "normal", "normal"]
    draw_by_grade(by_grade, groups, groups[0].held_out)
    np.testing.assert_allclose([bar.get_height() for bar in by_grade.patches], expected[0])
    (row,) = method_rows(groups)
    assert row["on all"] == f"{100 * expected[1][0]:.1f}"


def test_a_grade_with_the_name_of_a_column_does_not_replace_it(tmp_path):
    folder = write_run(tmp_path / "run")
    metrics = (folder / "metrics.jsonl").read_text()
    (expected,) = method_rows(group_runs(load_runs([folder])))
    (folder / "metrics.jsonl").write_text(metrics.replace("/1 digit", "/before"))
    (row,) = method_rows(group_runs(load_runs([folder])))
    assert row.pop("on before") == expected.pop("on 1 digit")
    assert row == expected


def test_the_accuracy_table_of_one_evaluation_has_no_after(tmp_path):
    folder = write_run(tmp_path / "run", steps=9, done=1)
    table = accuracy_table(folder)
    assert [column.header for column in table.columns] == ["grade", "answers", "before (step 0)"]
    assert len(rendered(table)) == 4
