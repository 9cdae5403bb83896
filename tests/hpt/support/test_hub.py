"""hpt.support.hub: a hub that does not answer is asked once, and nothing is retried for half a minute."""

import os

import pytest
from huggingface_hub import constants

from hpt.commands.main import main
from hpt.support.hub import find_hub, missing_local_path

CLOSED = "http://127.0.0.1:9"  # the discard port, where nothing listens


@pytest.fixture
def closed_hub(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    find_hub.cache_clear()
    yield
    find_hub.cache_clear()


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_an_unreachable_hub_is_named_at_once(tmp_path, closed_hub, monkeypatch, capfd, kind):
    if kind == "dataset":
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    data = tmp_path / "questions.csv"
    data.write_text("prompt,answer\n1+1?,2\n")
    source = str(data) if kind == "model" else "nobody/nothing-of-this-name@test"
    assert main(["eval", "nobody/no-model-of-this-name", "--data", source]) == 2
    _, said, error, *_ = capfd.readouterr().err.splitlines()
    assert f"warning: the Hugging Face hub ({CLOSED}) does not answer" in said
    assert "only what is cached can be used" in said
    assert error.startswith("error: ")
    assert ("no-model-of-this-name" if kind == "model" else source) in error
    assert constants.HF_HUB_OFFLINE
    assert not find_hub()  # and it is not asked again
    assert capfd.readouterr().err == ""


def test_a_file_in_the_place_of_a_folder_is_called_one(tmp_path):
    (tmp_path / "recipe.yaml").write_text("steps: 1")
    assert missing_local_path(str(tmp_path / "recipe.yaml")) == f"{tmp_path / 'recipe.yaml'} is a file, not a folder"
    os.mkfifo(tmp_path / "pipe")
    assert missing_local_path(str(tmp_path / "pipe")) == f"{tmp_path / 'pipe'} is no regular file"
    assert "has no 'recipe.yml'); did you mean" in missing_local_path(str(tmp_path / "recipe.yml"))


def test_an_error_without_words_is_named_by_its_type(closed_hub, monkeypatch, caplog):
    class Session:
        def head(self, *_, **__):
            raise TimeoutError

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert not find_hub()
    assert "does not answer: TimeoutError; only what is cached" in caplog.text
