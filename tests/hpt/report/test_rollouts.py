"""The browser of rollouts: what the page is given, and what it does with it in Chromium."""

import base64
import json
import math
import shutil
import struct
import zlib
from array import array

import pytest
import yaml

from bench.report.chromium import find_browser, probe
from hpt.report import report
from hpt.report.bundle import content_policy, katex_styles, scripts
from hpt.report.rollout_data import FOLDER, write_rollouts
from hpt.report.rollouts import RolloutIndex, pack_texts
from hpt.report.runs import load_runs

BROWSER = find_browser()


def unpack(packed: str) -> bytes:
    return zlib.decompress(base64.b64decode(packed))


def unpacked_index(packed: str) -> tuple[dict, dict[str, list]]:
    """The header and the columns of an index, as assets/data.js reads them."""
    data = unpack(packed)
    size = struct.unpack("<I", data[:4])[0]
    header = json.loads(data[8 : 8 + size])
    columns, offset = {}, -(-(8 + size) // 8) * 8
    for name, code, length in header["columns"]:
        values = array(code, data[offset : offset + length * array(code).itemsize])
        columns[name] = values.tolist()
        offset = -(-(offset + length * values.itemsize) // 8) * 8
    return header, columns


def record(step, id, responses, **changes):
    count = len(responses)
    return {
        **{"step": step, "id": id, "grade": None, "prompt": f"{id}?", "answer": "1", "responses": responses},
        **{"scores": [0.5] * count, "statuses": ["incorrect"] * count, "finish_reasons": ["stop"] * count},
        **{"lengths": [7] * count, "P": 0.5, "alpha": 1.0, "beta": 0.0, "off": 0.0, "trained": True},
        **changes,
    }


def write_run(folder, steps):
    """A run with these records of rollouts, by step."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"output": str(folder), "method": "hpt", "steps": len(steps)}))
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in steps))
    for step, records in steps.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "rollouts" / f"step-{step:06d}.jsonl").write_text(lines)
    return folder


# ---- the index and the texts


def test_the_index_has_the_numbers_of_every_rollout():
    index = RolloutIndex()
    index.add(1, [record(1, "a", ["x", "y"], statuses=["correct", "timeout"], finish_reasons=["stop", "length"])])
    rewards = {"brief": [0.25, None], "kind": [1.0, 0.0]}
    trained = {"rewards": rewards, "total_rewards": [0.75, 0.5], "advantages": [0.125, -0.125]}
    index.add(2, [record(2, "b", [], alpha=0.0, beta=1.0, P=None), record(2, "a", ["x", "y"], grade="7", **trained)])
    header, columns = unpacked_index(index.pack("run"))
    assert (header["name"], header["ids"], header["grades"]) == ("run", ["a", "b"], ["", "7"])
    assert header["statuses"] == ["correct", "timeout", "incorrect"]
    assert columns["draws.step"] == [1, 2, 2]
    assert columns["draws.question"] == [0, 1, 0]
    assert columns["draws.grade"] == [0, 0, 1]
    assert columns["draws.count"] == [2, 0, 2]
    assert columns["draws.beta"] == [0, 1, 0]
    assert math.isnan(columns["draws.P"][1])
    assert columns["rollouts.status"] == [0, 1, 2, 2]
    assert columns["rollouts.truncated"] == [0, 1, 0, 0]
    assert columns["rollouts.reward"] == [0.5, 0.5, 0.75, 0.5]
    assert columns["rollouts.advantage"][2:] == [0.125, -0.125]
    brief, kind = columns["functions.brief"], columns["functions.kind"]
    assert [math.isnan(value) for value in brief] == [True, True, False, True]
    assert (brief[2], kind[2:]) == (0.25, [1.0, 0.0])


def test_a_reward_function_that_comes_and_goes_keeps_its_place():
    index = RolloutIndex()
    for step, rewards in enumerate(({"f": [1.0]}, {}, {"f": [3.0], "g": [4.0]}), 1):
        index.add(step, [record(step, "a", ["x"], rewards=rewards)])
    _, columns = unpacked_index(index.pack("run"))
    assert columns["functions.f"][::2] == [1.0, 3.0]
    assert [math.isnan(value) for value in columns["functions.f"]] == [False, True, False]
    assert [math.isnan(value) for value in columns["functions.g"]] == [True, True, False]


def test_old_records_can_be_read():
    old = record(1, "a", ["x", "y"], overlong=[-0.25, 0.0])
    for key in ("lengths", "off", "trained", "finish_reasons"):
        del old[key]
    index = RolloutIndex()
    index.add(1, [old])
    _, columns = unpacked_index(index.pack("run"))
    assert columns["rollouts.reward"] == [0.25, 0.5]
    assert columns["rollouts.length"] == [0, 0]
    assert all(map(math.isnan, columns["rollouts.advantage"]))


def test_texts_are_in_the_order_of_the_index():
    chat = [{"role": "user", "content": "1 + 1?"}]
    records = [record(1, "a", ["x", "y"], prompt=chat, answer=None), record(1, "b", [], demonstration="It is 2.")]
    first, second = json.loads(unpack(pack_texts(records)))
    assert first == {"prompt": "user: 1 + 1?", "answer": None, "demonstration": None, "responses": ["x", "y"]}
    assert (second["responses"], second["demonstration"]) == ([], "It is 2.")


def test_many_rollouts_go_to_a_folder_that_the_page_reads_on_demand(tmp_path):
    runs = load_runs([write_run(tmp_path / name, {1: [record(1, "a", ["x"])], 7: []}) for name in ("one", "two")])
    size = sum(path.stat().st_size for path in tmp_path.rglob("step-*.jsonl"))
    data = write_rollouts(runs, tmp_path, most_in_page=size - 1)
    assert (data.in_folder, data.texts, len(data.indexes)) == (True, {}, 2)
    written = sorted(path.relative_to(tmp_path / FOLDER).as_posix() for path in (tmp_path / FOLDER).rglob("*.js"))
    assert written == [f"{run}/step-{step:06d}.js" for run in (0, 1) for step in (1, 7)]
    text = (tmp_path / FOLDER / "1/step-000001.js").read_text()
    assert text.startswith('hptTexts("1/1","')
    assert json.loads(unpack(text.split('"')[3]))[0]["responses"] == ["x"]
    in_page = write_rollouts(runs, tmp_path, most_in_page=size)
    assert list(in_page.texts) == [(0, 1), (0, 7), (1, 1), (1, 7)]
    assert not (tmp_path / FOLDER).exists()  # it would be out of date


def test_a_page_without_rollouts_has_no_scripts(tmp_path):
    page = report([write_run(tmp_path / "run", {1: []})]).read_text()
    assert "<script" in page
    shutil.rmtree(tmp_path / "run" / "rollouts")
    page = report([tmp_path / "run"]).read_text()
    assert "<script" not in page
    assert "font/woff2" not in page


def test_what_the_page_embeds_needs_no_other_file():
    assert katex_styles().count("url(data:font/woff2;base64,") == katex_styles().count("url(") == 20
    assert not any("</script" in script or "<!--" in script for script in scripts())
    assert "innerHTML" not in scripts()[1]  # texts of models become text nodes
    assert "file:" in content_policy(reads_folder=True)
    assert "file:" not in content_policy(reads_folder=False)


# ---- in Chromium

PROBE = """
  const set = (name, value) => {
    const field = find("#rollouts form").elements[name];
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    return find(".count").textContent;
  };
  await wait(() => find(".panel .passage"));
  const found = { all: find(".count").textContent };
  found.truncated = set("ended", "1");
  set("ended", "");
  found.brief = set("least function brief", "0.5");
  set("least function brief", "");
  find("th.column-tokens button").click();
  found.longest = all(".list tbody tr .column-tokens").slice(0, 2).map((cell) => cell.textContent);
  find(".list tbody a").click();
  await wait(() => find(".panel h3")?.textContent.startsWith("Step 2"));
  found.collapsed = find(".panel .passage").textContent.length;
  find(".panel").scrollIntoView();
  await wait(() => find(".panel .boxed .katex"));
  find(".panel .more").click();
  await wait(() => find(".facts dd .katex"));
  found.facts = all(".facts dd").slice(1, 3).map((fact) => fact.textContent);
  found.whole = find(".panel .passage").textContent.includes("<script>");
  found.demonstration = all(".panel .passage").at(-1).textContent;
  found.elements = all(".panel script, .panel img, .panel a[href^=javascript]").length;
  find("#rollouts").dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
  await wait(() => find(".panel h3").textContent.startsWith("Step 1"));
  find(".panel a[href^='#question']").click();
  await wait(() => find(".panel svg"));
  found.history = all(".panel circle").length;
  found.hacked = "hacked" in frame.contentWindow;
  found.loaded = frame.contentWindow.performance.getEntriesByType("resource").length;
  report(found);
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("in_folder", [False, True])
def test_the_browser_of_rollouts_in_chromium(tmp_path, monkeypatch, in_folder):
    if in_folder:
        monkeypatch.setattr("hpt.report.rollout_data.MOST_IN_PAGE", 0)
    evil = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\\href{javascript:hacked=1}{x}"
    long = f"{evil} $1 + 1$ " + "and so on " * 900 + "so it is \\boxed{\\frac{1}{2}}."
    first = record(1, "a", ["x", "y"], finish_reasons=["stop", "length"], rewards={"brief": [0.0, 1.0]})
    second = record(
        2, "a", [long, "z"], lengths=[3000, 5], demonstration=evil, answer=evil, rewards={"brief": [0.0, 0.0]}
    )
    run = write_run(tmp_path / "run", {1: [first], 2: [second]})
    report([run], tmp_path)
    assert (tmp_path / FOLDER).exists() == in_folder
    found = probe(BROWSER, tmp_path / "report.html", PROBE, timeout=30)
    assert found["all"] == "4 of 4 rollouts"
    assert found["truncated"] == "1 of 4 rollouts"
    assert found["brief"] == "1 of 4 rollouts"
    assert found["longest"] == ["3,000", "7"]
    assert found["collapsed"] < 2500 < len(long)
    assert found["whole"]
    assert found["facts"][0].startswith("12\\frac{1}{2}")  # MathML, its source, and what is drawn
    assert found["demonstration"] == evil
    assert (found["hacked"], found["elements"]) == (False, 0)
    assert found["loaded"] == 0  # scripts beside a file are not counted
    assert found["history"] == 2
