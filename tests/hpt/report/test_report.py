"""hpt.report: the page shows the numbers of metrics.jsonl, whichever a run has and whatever a model wrote."""

import base64
import errno
import hashlib
import json
import os
import re
import shutil
import zlib

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from report_page import Page
from written_run import GRADES, write_run

from hpt.records.files import read_metrics
from hpt.report import accuracy_table, report, summary_figure
from hpt.report.figures import FIGURES
from hpt.report.model_card import model_card
from hpt.report.panels.quantities import OFF_POLICY, REWARD, draw_quantity
from hpt.report.panels.stacks import draw_gate_counts, has_gate_counts
from hpt.report.runs import group_runs, load_runs
from hpt.support.errors import HptError

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


def test_a_run_whose_rollouts_were_removed_says_so(tmp_path):
    folder = write_run(tmp_path / "run", steps=4)
    assert load_runs([folder])[0].notes == []
    for step in (2, 3):
        (folder / "rollouts" / f"step-{step:06d}.jsonl").unlink()
    said = "run: The rollouts of 2 of 4 steps are missing, of step 2 first."
    assert said in Page(report([folder])).texts["li"]
    shutil.rmtree(folder / "rollouts")
    assert load_runs([folder])[0].notes == []


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
