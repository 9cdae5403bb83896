"""`make mutation`: its table, and which results pass."""

from __future__ import annotations

import json
from pathlib import Path

from bench.commands.mutation import (
    SURVIVORS,
    Mutant,
    change,
    keep,
    missed,
    passes,
    read_judgements,
    restore,
    table,
)

DIFF = """--- a.py
+++ a.py
@@ -1,3 +1,3 @@
 def f(x):
-    if x > 0:
+    if x >= 0:
         return x
"""


def test_the_change_of_a_diff() -> None:
    assert change(DIFF) == ("if x > 0:", "if x >= 0:")


def test_every_mutant_is_tested_and_caught_or_judged(tmp_path: Path) -> None:
    judged = tmp_path / "survivors.yaml"
    judged.write_text('a.py:\n  - {was: "if x > 0:", now: ["if x >= 0:", "other"], why: x is never 0}\n')
    judgements = read_judgements(judged)
    missed = Mutant("a.py", "survived", "if x > 0:", "if x >= 0:")
    found = [Mutant("a.py", "killed")] * 18 + [Mutant("b.py", "timeout"), missed]
    assert passes(found, judgements)
    assert not passes(found, {})
    assert not passes([*found, missed], judgements)
    assert not passes([*found, Mutant("b.py", "not checked")], judgements)
    text = table([*found, Mutant("b.py", "not checked")], judgements)
    assert "| a.py | 19 | 18 | 94.7% | 1 | 0 | 0 |" in text
    assert "| all | 21 | 19 | 95.0% | 1 | 0 | 1 |" in text
    assert "- `if x > 0:`\n    - `if x >= 0:`: x is never 0" in text


def test_results_are_kept_for_another_clone(tmp_path: Path) -> None:
    here, there, kept = tmp_path / "here", tmp_path / "there", tmp_path / "mutation.json.gz"
    tested = {
        "exit_code_by_key": {"hpt.method.gate.x_switch__mutmut_1": 1, "hpt.method.gate.x_switch__mutmut_2": None},
        "hash_by_function_name": {"x_switch": "2f1a"},
    }
    durations = {"durations_by_key": {"hpt.method.gate.x_switch__mutmut_1": 2.5}, "estimated_durations_by_key": {}}
    untested = {"exit_code_by_key": {"hpt.rows.x_f__mutmut_1": None}, "hash_by_function_name": {"x_f": "9b"}}
    for name, result in (("gate", tested), ("rows", untested)):
        (here / "hpt" / "method").mkdir(parents=True, exist_ok=True)
        (here / "hpt" / "method" / f"{name}.py.meta").write_text(json.dumps(result | durations))
    keep(kept, here)
    restore(kept, there)
    restored = json.loads((there / "hpt" / "method" / "gate.py.meta").read_text())
    assert restored == tested | {"durations_by_key": {}, "estimated_durations_by_key": {}}
    assert not (there / "hpt" / "method" / "rows.py.meta").exists()
    restore(kept, here)  # where there are results, they are newer
    assert json.loads((here / "hpt" / "method" / "gate.py.meta").read_text()) == tested | durations


def test_what_was_neither_caught_nor_judged_is_tested_again() -> None:
    found = [
        Mutant("a.py", "killed"),
        Mutant("a.py", "not checked"),
        Mutant("a.py", "survived", "x > 0", "x >= 0", "a.x_f__mutmut_1"),
        Mutant("a.py", "survived", "x > 0", "x < 0", "a.x_f__mutmut_2"),
        Mutant("b.py", "no tests", "y", "None", "b.x_g__mutmut_1"),
    ]
    assert missed(found, {("a.py", "x > 0", "x >= 0"): "x is never 0"}) == ["a.x_f__mutmut_2", "b.x_g__mutmut_1"]


def test_every_judgement_is_about_a_line_that_is_there() -> None:
    root = SURVIVORS.parents[2]
    for file, was, _ in read_judgements(SURVIVORS):
        code = (root / "kernels" / file if file.startswith("upge/") else root / file).read_text()
        assert was in " ".join(line.strip() for line in code.splitlines()), (file, was)
