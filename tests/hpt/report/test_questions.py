"""hpt.report: pass@k, the map of questions, the ablation of gamma, and the page in a browser."""

import itertools
import json
import math
import shutil
import statistics
import subprocess

import numpy as np
import pytest
import yaml
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hpt.report import report
from hpt.report.evaluations import QuestionCounts
from hpt.report.figures import draw_figures
from hpt.report.panels.ablation import draw_final_accuracy, draw_sft_share, gamma_families
from hpt.report.panels.questions import draw_pass_at_k, draw_question_map
from hpt.report.questions import comparable_evaluations, pass_curve, question_map
from hpt.report.runs import group_runs, load_runs
from hpt.report.tables import method_rows, saved_rows
from hpt.support.errors import HptError

QUESTIONS = {"a": "easy", "b": "easy", "c": "hard", "d": "hard"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def write_run(folder, evaluations, *, n=4, sft=(), **config):
    """A run. evaluations: right responses by question, by step; sft: how many of 4 questions each step sent to SFT."""
    (folder / "eval").mkdir(parents=True)
    defaults = {"output": str(folder), "method": "hpt", "seed": 0, "steps": max(evaluations), "rollout": {"n": 8}}
    defaults["data"] = {"eval": str(folder / "data.jsonl")}
    (folder / "config.yaml").write_text(yaml.safe_dump(defaults | config))
    lines = {step: {"step": step} for step in sorted({*evaluations, *range(1, len(sft) + 1)})}
    for step, sent in enumerate(sft, 1):
        lines[step] |= {"gate/sft": sent, "gate/questions": 4}
    for step, counts in evaluations.items():
        rows = [question(id, step, n, correct) for id, correct in counts.items()]
        (folder / "eval" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines[step] |= {"eval/correct": sum(counts.values()), "eval/count": n * len(counts)}
        for grade in sorted(set(QUESTIONS.values())):
            own = [correct for id, correct in counts.items() if QUESTIONS[id] == grade]
            lines[step] |= {f"eval/correct/{grade}": sum(own), f"eval/count/{grade}": n * len(own)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    return folder


def question(id, step, n, correct):
    return {
        **{"step": step, "id": id, "grade": QUESTIONS[id], "prompt": f"{id}?", "answer": id},
        **{"n": n, "correct": correct, "lengths": [3] * n},
    }


def only_group(*folders):
    (group,) = group_runs(load_runs(folders))
    return group


# ---- pass@k


def test_a_pass_curve_is_the_chance_over_all_subsets():
    """It is averaged over runs for each question, and then over questions."""
    n, counts = 6, [[0, 1, 3], [2, 1, 6]]
    runs = [[QuestionCounts(f"{q}", None, n, correct) for q, correct in enumerate(run)] for run in counts]
    curve = pass_curve(runs)
    assert (curve.n, curve.ks) == (6, [1, 2, 4, 6])
    for k, estimate in zip(curve.ks, curve.estimates, strict=True):
        subsets = list(itertools.combinations(range(n), k))
        chance = [
            [sum(min(chosen) < correct for chosen in subsets) / len(subsets) for correct in run] for run in counts
        ]
        assert estimate.mean == pytest.approx(np.mean(chance), rel=1e-12)
        assert estimate.low < estimate.mean < estimate.high


def test_questions_that_only_some_runs_have_count_once_each():
    runs = [[QuestionCounts("x", None, 2, 2)], [QuestionCounts("x", None, 2, 0)], [QuestionCounts("y", None, 4, 0)]]
    curve = pass_curve(runs)
    assert (curve.n, curve.ks) == (2, [1, 2])
    assert [estimate.mean for estimate in curve.estimates] == [0.25, 0.25]  # x .5 on average, y 0


def test_pass_at_k_before_and_after_training(tmp_path):
    before, after = {"a": 1, "b": 0, "c": 0, "d": 0}, {"a": 4, "b": 2, "c": 1, "d": 0}
    group = only_group(write_run(tmp_path / "run", {0: before, 8: after}))
    axes = Figure().add_subplot()
    (evaluations,) = comparable_evaluations([group])
    assert "data.jsonl (4 questions, n = 4)" in draw_pass_at_k(axes, [group], evaluations, "pass@k")
    first, last = axes.lines
    for line, counts in ((first, before), (last, after)):
        assert line.get_xdata().tolist() == [1, 2, 4]
        expected = [
            statistics.mean(1 - math.comb(4 - c, k) / math.comb(4, k) for c in counts.values()) for k in (1, 2, 4)
        ]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)


def test_an_evaluation_by_hpt_eval_is_preferred(tmp_path):
    run = write_run(tmp_path / "run", {0: {"a": 0}, 8: {"a": 1}})
    rows = [question("a", 0, 32, 16)]
    (run / "eval" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    axes = Figure().add_subplot()
    group = only_group(run)
    (evaluations,) = comparable_evaluations([group])
    assert "n = 32" in draw_pass_at_k(axes, [group], evaluations, "pass@k")
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [1, 2, 4, 8, 16, 32]
    assert line.get_ydata()[0] == 0.5


def test_one_response_per_question_gives_no_pass_at_k(tmp_path):
    group = only_group(write_run(tmp_path / "run", {0: {"a": 0}, 8: {"a": 1}}, n=1))
    drawings, notes = draw_figures([group])
    assert "pass_at_k" not in drawings
    assert any(note.startswith("pass@k: no evaluation") for note in notes)


# ---- like with like


def save_evaluation(run, name, data, counts, n, **sampling):
    folder = run / "eval" / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [question(id, 0, n, correct) for id, correct in counts.items()]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": data, "model": "runs/run/checkpoints/step-000008", "n": n, **sampling}
    (folder / "summary.json").write_text(json.dumps({"settings": settings}))


def test_evaluations_of_other_data_and_of_subsets_are_compared_apart(tmp_path):
    counts = {"a": 1, "b": 2, "c": 3, "d": 4}
    runs = [write_run(tmp_path / method, {0: counts, 8: counts}, method=method) for method in ("hpt", "grpo")]
    save_evaluation(runs[0], ".", "data/AIME24/test.json", {"b": 0}, 32, temperature=0.6)
    save_evaluation(runs[0], "part", "runs/data.jsonl", {"a": 4}, 4)
    groups = group_runs(load_runs(runs))
    found = comparable_evaluations(groups)
    assert [(str(each.conditions), list(each.by_group)) for each in found] == [
        ("data.jsonl (4 questions, n = 4)", ["hpt", "grpo"]),
        ("AIME24/test.json (1 questions, n = 32, temperature 0.6)", ["hpt"]),
        ("data.jsonl (1 questions, n = 4)", ["hpt"]),
    ]
    rows = method_rows(groups)
    assert [row["pass@4"] for row in rows] == ["100.0", "100.0"]
    assert [(row["data"], row["avg@n"].split()[0]) for row in saved_rows(load_runs(runs))] == [
        ("AIME24/test.json", "0.0%"),
        ("data.jsonl", "100.0%"),
    ]


def test_an_evaluation_of_the_same_questions_must_exist_for_every_run(tmp_path):
    counts = {"a": 1, "b": 2}
    runs = [write_run(tmp_path / method, {0: counts, 8: counts}, method=method) for method in ("hpt", "grpo")]
    save_evaluation(runs[0], ".", "data.jsonl", counts, 32)
    trained, _ = comparable_evaluations(group_runs(load_runs(runs)))
    assert (trained.in_training, list(trained.by_group)) == (True, ["hpt", "grpo"])
    save_evaluation(runs[1], ".", "data.jsonl", counts, 32)
    (both,) = comparable_evaluations(group_runs(load_runs(runs)))
    assert (both.in_training, both.conditions.n, list(both.by_group)) == (False, 32, ["hpt", "grpo"])


def test_runs_with_other_held_out_questions_are_drawn_apart(tmp_path):
    same, other = {"a": 1, "b": 2}, {"c": 1, "d": 4}
    runs = [
        write_run(tmp_path / f"{index}", {0: counts, 8: counts}, seed=seed)
        for index, (counts, seed) in enumerate([(same, 0), (other, 0), (other, 1)])
    ]
    groups = group_runs(load_runs(runs))  # seeds may have questions of their own; two runs of one seed may not
    assert [[run.name for run in group.runs] for group in groups] == [["0", "2"], ["1"]]
    drawings, _ = draw_figures(groups)
    for name in ("accuracy", "accuracy_by_grade", "pass_at_k"):
        assert len(drawings[name].figure.axes) == 2
        assert "data.jsonl (2 questions, n = 4)" in drawings[name].caption
        assert "data.jsonl (other questions, 1)" in drawings[name].caption


# ---- the map


def test_the_map_is_sorted_by_grade_and_then_by_success(tmp_path):
    one = write_run(tmp_path / "0", {0: {"d": 0, "c": 1, "b": 0, "a": 2}, 4: {"d": 4, "c": 1, "b": 4, "a": 3}}, steps=8)
    two = write_run(
        tmp_path / "1",
        {0: {"a": 0, "b": 0, "c": 1, "d": 0}, 4: {"a": 1, "b": 4, "c": 3, "d": 2}, 8: {"a": 4, "b": 4, "c": 4, "d": 4}},
        seed=1,
    )
    found = question_map(only_group(one, two))
    assert (found.steps, found.grades) == ([0, 4], ["easy", "easy", "hard", "hard"])
    # b: 0 and 4 of 4; a: 1 and 2; d: 0 and 3; c: 1 and 2 on average. With equal means, the better end comes first.
    np.testing.assert_array_equal(found.shares, [[0, 1], [0.25, 0.5], [0, 0.75], [0.25, 0.5]])
    axes = Figure().add_subplot()
    image = draw_question_map(axes, found, "map")
    np.testing.assert_array_equal(image.get_array(), found.shares)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["easy", "hard"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "4"]


def test_a_broken_evaluation_is_named(tmp_path):
    run = write_run(tmp_path / "run", {0: {"a": 0}, 8: {"a": 1}})
    (run / "eval" / "step-000008.jsonl").write_text('{"step": 8, "id": "a", "grade": null, "n": 4}\n')
    with pytest.raises(HptError, match=r"step-000008\.jsonl, line 1: field 'prompt' is missing"):
        report([run])


# ---- the ablation


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """Gammas as counts of 8 and as shares, two seeds each. A larger gamma has fewer right answers in the end."""
    root = tmp_path_factory.mktemp("ablation")
    for gamma, right in ((0, 4), (1, 3), (0.5, 1)):
        for seed in (0, 1):
            final = {"a": 4, "b": right, "c": seed, "d": 0}
            write_run(
                root / f"{gamma}-{seed}",
                {0: dict.fromkeys("abcd", 1), 4: final},
                sft=[4, 3, 2, int(8 * gamma) if gamma < 1 else gamma],
                seed=seed,
                gate={"kind": "switch", "gamma": gamma},
            )
    return sorted(root.iterdir())


def test_families_are_runs_that_differ_in_gamma(ablation):
    (family,) = gamma_families(group_runs(load_runs(ablation)))
    assert list(family.groups) == [0, 0.125, 0.5]
    assert [len(group.runs) for group in family.groups.values()] == [2, 2, 2]
    assert gamma_families(group_runs(load_runs(ablation[:2]))) == []


def test_final_accuracy_by_gamma(ablation):
    families = gamma_families(group_runs(load_runs(ablation)))
    axes = Figure().add_subplot()
    assert draw_final_accuracy(axes, families)
    (means,) = [line for line in axes.lines if line.get_zorder() == 4]
    assert list(means.get_xdata()) == [0, 0.125, 0.5]
    np.testing.assert_allclose(means.get_ydata(), [8.5 / 16, 7.5 / 16, 5.5 / 16])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0/8", "1/8", "4/8"]
    whiskers = [line.get_ydata() for line in axes.lines if line.get_linewidth() == 1.4 and len(line.get_xdata()) == 2]
    spread = statistics.stdev([8 / 16, 9 / 16])
    np.testing.assert_allclose(whiskers[0], [8.5 / 16 - spread, 8.5 / 16 + spread])
    easy, hard = ([8 / 8, 7 / 8, 5 / 8], [0.5 / 8] * 3)
    grades = [line.get_ydata() for line in axes.lines if line.get_zorder() == 3]
    np.testing.assert_allclose(grades, [easy, hard])


def test_sft_share_by_gamma(ablation):
    axes = Figure().add_subplot()
    assert draw_sft_share(axes, gamma_families(group_runs(load_runs(ablation))))
    assert [line.get_ydata()[-1] for line in axes.lines] == [0, 0.25, 1]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 3


def test_the_report_has_the_ablation(ablation, tmp_path):
    page = report(ablation, tmp_path).read_text()
    assert 'id="gate_ablation"' in page
    assert (tmp_path / "figures" / "gate_ablation.png").stat().st_size > 10_000
    assert "Gate ablation" not in page


# ---- in a browser

PROBE = """<!doctype html><body><script>
const widths = {phone: 390, desktop: 1280}, found = {};
for (const [name, width] of Object.entries(widths)) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  frame.src = "PAGE";
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
    const boxes = (selector) => [...page.querySelectorAll(selector)].map(found => found.getBoundingClientRect());
    const drawings = boxes("figure svg").filter(box => box.width);  // a narrow page hides the wide ones
    const letters = [...page.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().width)
      .map(svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width);
    found[name] = {
      overflow: root.scrollWidth - width,
      drawings: drawings.map(box => [box.width, box.height]),
      images: boxes("image").filter(box => box.width).map(box => box.height),
      scale: Math.min(...letters),
      paper: view.getComputedStyle(page.body).backgroundColor,
      ink: view.getComputedStyle(page.body).color,
      loaded: view.performance.getEntriesByType("resource").length,
    };
    if (Object.keys(found).length == 2) document.body.textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(ablation, tmp_path, dark):
    page = report(ablation, tmp_path)
    (tmp_path / "probe.html").write_text(PROBE.replace("PAGE", page.name))
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    flags += "--disable-component-update --allow-file-access-from-files --virtual-time-budget=20000 --dump-dom"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [BROWSER, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", scheme]
    done = subprocess.run(
        [*command, f"file://{tmp_path / 'probe.html'}"], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])
    for name, width in (("phone", 390), ("desktop", 1280)):
        view = found[name]
        assert view["overflow"] <= 0, name  # only tables and wide drawings scroll, inside their own cards
        assert len(view["drawings"]) == page.read_text().count("<figure id=")
        assert all(0.5 * min(width, 600) < w and h > 100 for w, h in view["drawings"])
        assert view["scale"] > 1  # so letters of 9.5 points are at least as many pixels high
        assert view["images"]
        assert all(height > 50 for height in view["images"])
        assert view["loaded"] == 0  # the page loads nothing else
        paper, ink = (sum(map(int, view[key].strip("rgb()").split(","))) for key in ("paper", "ink"))
        assert (paper < 200 < 500 < ink) if dark else (ink < 200 < 700 < paper)
