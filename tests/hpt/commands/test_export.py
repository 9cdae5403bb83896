"""`hpt export`: the model card that a run gives, and pushing to a hub, for which a stub stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hpt.api.export import push_finished_run
from hpt.commands.main import main
from hpt.report import model_card
from hpt.report.runs import load_runs
from hpt.support import upload


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, whose last checkpoint hpt eval has evaluated."""
    folder = tmp_path_factory.mktemp("export") / "run"
    pushed = ["checkpoint.push_to_hub=me/model", "checkpoint.hub_private=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpt.training.assemble.check_logged_in", lambda setting: None)
        patch.setattr("hpt.api.export.push_finished_run", lambda folder: None)
        assert main(["train", str(world), f"output={folder}", "steps=2", "seed=5", *pushed]) == 0
    summary = {
        "settings": {"model": str(folder / "checkpoints" / "step-000002"), "data": "AIME24"},
        **{"questions": 30, "n": 4, "avg@4": {"mean": 0.25, "low": 0.125, "high": 0.5}},
    }
    for name, change in (("this", {}), ("other", {"settings": {"model": "base", "data": "AIME25"}})):
        (folder / "eval" / name).mkdir()
        (folder / "eval" / name / "summary.json").write_text(json.dumps(summary | change))
    return folder


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The calls of the hub's API, which accepts everything."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Url(str):
        repo_id = "me/model"

    class Api:
        def create_repo(self, name: str, **options: Any) -> Url:
            calls.append((name, options))
            return Url("https://hub/me/model")

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr(upload, "find_hub", lambda: True)
    return calls


def test_the_card_says_how_the_model_was_made(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "exported")]) == 0
    card = ModelCard.load(tmp_path / "exported" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert {"hpt", "reinforcement-learning"} <= set(card.data.tags)
    assert card.data.model_name == "run"
    held_out, benchmark = card.data.eval_results
    assert (held_out.dataset_name, benchmark.dataset_name) == ("eval.jsonl", "AIME24")
    assert benchmark.metric_value == "25.0 (12.5 to 50.0)"
    right = sum(question.correct for question in load_runs([run])[0].question_counts[2]) / 12
    assert held_out.metric_value.startswith(f"{100 * right:.1f} (")
    for part in ("before training", "after step 2", "avg@2", "2 of 2", "4 a question", "`hpt`", "seed: 5", "AIME24"):
        assert part in card.text, part
    assert "AIME25" not in card.text  # of another model
    assert card.text.count("\n| `") == 3  # evaluations: before, after, hpt eval
    assert (tmp_path / "exported" / model_card.FIGURE).stat().st_size > 10_000
    assert f"]({model_card.FIGURE})" in card.text


def test_the_card_names_what_is_on_the_hub(run: Path) -> None:
    (found,) = load_runs([run])
    assert model_card.model_card(found, 2).data.base_model is None  # a local folder
    found.config["model"]["path"] = "Qwen/Qwen2.5-Math-7B"
    found.config["data"]["train"] = "Elliott/Openr1-Math-46k-8192@train"
    data = model_card.model_card(found, 1).data
    assert data.base_model == "Qwen/Qwen2.5-Math-7B"
    assert data.datasets == ["Elliott/Openr1-Math-46k-8192"]
    assert data.eval_results is None  # the only evaluation up to step 1 is of the start model


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that writes a card alone."""

    def export(source: Path, folder: Path) -> None:
        (folder / "README.md").write_text("a card")

    monkeypatch.setattr("hpt.api.export.export_checkpoint", export)


@pytest.mark.usefixtures("quick_export")
def test_export_pushes_where_it_is_asked_to(run: Path, tmp_path: Path, uploads: list[Any]) -> None:
    asked = ["export", str(run), str(tmp_path / "a"), "--push-to-hub", "me/model"]
    assert main(asked) == 0
    assert uploads[0] == ("me/model", {"private": None, "exist_ok": True})
    assert uploads[1][1]["folder_path"] == tmp_path / "a"
    assert uploads[1][1]["repo_id"] == "me/model"
    asked[2] = str(tmp_path / "b")
    assert main([*asked, "--private"]) == 0
    assert uploads[2][1]["private"] is True


def test_a_finished_run_is_pushed_as_its_recipe_says(run: Path, uploads: list[Any]) -> None:
    (run / "export").mkdir(exist_ok=True)
    (run / "export" / "old").touch()  # a run that is resumed may finish twice
    push_finished_run(run)
    assert [name for name, _ in uploads] == ["me/model", "upload"]
    assert not (run / "export" / "old").exists()
    assert uploads[0][1]["private"] is True
    assert {"README.md", "config.json", "model.safetensors", "summary.png"} <= {
        p.name for p in (run / "export").iterdir()
    }
    assert not list((run / "export").glob("trainer_state*"))


@pytest.mark.usefixtures("quick_export", "uploads")
def test_a_hub_that_fails_leaves_the_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("403 Forbidden")

    failures: list[Callable[[], None]] = [
        lambda: monkeypatch.setattr("huggingface_hub.HfApi", lambda: SimpleNamespace(create_repo=refuse)),
        lambda: monkeypatch.setattr(upload, "find_hub", lambda: False),
    ]
    for number, (fail, words) in enumerate(zip(failures, ("403 Forbidden", "does not answer"), strict=True)):
        fail()
        folder = tmp_path / str(number)
        assert main(["export", str(run), str(folder), "--push-to-hub", "me/model"]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert words in error
        assert f"hf upload me/model {folder}" in error
        assert (folder / "README.md").is_file()


@pytest.mark.usefixtures("quick_export", "uploads")
def test_a_finished_run_stays_one_where_the_hub_fails(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upload, "find_hub", lambda: False)
    push_finished_run(run)
    assert f"hf upload me/model {run / 'export'}" in caplog.text


def test_what_cannot_be_pushed_is_refused_first(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    output, folder = f"output={tmp_path / 'run'}", tmp_path / "exported"
    for command, word in (
        (["train", str(world), output, "checkpoint.push_to_hub=a/b/c"], "checkpoint.push_to_hub = 'a/b/c'"),
        (["train", str(world), output, "checkpoint.push_to_hub=me/x", "data.train=none.jsonl"], "hf auth login"),
        (["export", "nothing", str(folder), "--push-to-hub", "a b"], "--push-to-hub 'a b'"),
        (["export", "nothing", str(folder), "--push-to-hub", "me/x"], "hf auth login"),
    ):
        assert main(command) == 2
        assert word in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
