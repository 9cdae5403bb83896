"""What an integration says of a package that is missing or differs, and when it acts. Needs no other trainer."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from upge.integrations import openrlhf, prime_rl, verl
from upge.integrations.peer import Peer

PEER = Peer(
    package="some-trainer",
    module="some_trainer.head",
    functions={"Head.forward": ("self", "hidden"), "scale": ("logits",)},
    supported="1.2",
    get="pip install some-trainer==1.2",
)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of some_trainer.head."""
    folder = tmp_path / "some_trainer"
    folder.mkdir()
    (folder / "__init__.py").touch()
    head = folder / "head.py"
    head.write_text("class Head:\n    def forward(self, hidden, more=None): ...\n\ndef scale(logits): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in ("some_trainer", "some_trainer.head"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return head


@pytest.mark.parametrize("integration", [verl, openrlhf, prime_rl], ids=lambda module: module.__name__)
def test_a_missing_package_is_named_with_what_to_install(integration, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(integration.PEER, module="no_such_trainer.head")
    monkeypatch.setattr(integration, "PEER", missing)
    with pytest.raises(ModuleNotFoundError, match=f"{missing.package} is not installed: {missing.get}"):
        integration.install()


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("class Head: ...\n\ndef scale(logits): ...", "no function Head.forward in some_trainer.head"),
        ("class Head:\n    forward = None", "no function Head.forward"),
        (
            "class Head:\n    def forward(self, states): ...",
            r"some_trainer.head.Head.forward takes \(self, states\) where \(self, hidden\) is expected",
        ),
        ("class Head:\n    def forward(self, hidden): ...", "no function scale"),
        (None, "no module some_trainer.head"),
    ],
)
def test_another_version_is_refused(trainer: Path, source: str | None, what: str) -> None:
    trainer.unlink() if source is None else trainer.write_text(source)
    with pytest.raises(ImportError, match=rf"some-trainer of an unknown version .*1\.2: {what}.*pip install"):
        PEER.load()


def test_a_package_that_the_trainer_lacks_is_named_by_python(trainer: Path) -> None:
    trainer.write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        PEER.load()


def test_what_waits_for_an_import_happens_once_and_before_anyone_uses_the_module(trainer: Path) -> None:
    seen = []
    for _ in range(2):
        PEER.when_imported(lambda module: seen.append(module.Head))
    assert not seen
    module = importlib.import_module(PEER.module)
    assert seen == [module.Head]
    PEER.when_imported(lambda module: seen.append(module.Head))
    assert seen == [module.Head] * 2


def test_a_version_that_differs_is_refused_when_it_is_imported(trainer: Path) -> None:
    PEER.when_imported(lambda module: None)
    trainer.write_text("class Head: ...")
    with pytest.raises(ImportError, match=r"no function Head\.forward"):
        importlib.import_module(PEER.module)
