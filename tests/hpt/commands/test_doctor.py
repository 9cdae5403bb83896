"""`hpt doctor`: packages that are missing, broken or of another version, and what it prints."""

from pathlib import Path

import pytest
from upge.diagnosis import doctor as diagnosis
from upge.diagnosis.doctor import Section
from upge.diagnosis.finding import fault, note

from hpt.commands.main import main
from hpt.support import installation
from hpt.support.installation import Package, import_package, missing


def test_a_missing_package_says_what_to_install():
    assert missing(Package("vllm", "vllm", 'pip install "hpt[vllm]"')) == note(
        "vllm", 'not installed (pip install "hpt[vllm]")'
    )
    assert missing(Package("transformers", "transformers", "pip install hpt", needed=True))["held"] is False


def test_an_installed_version_is_compared_with_the_wanted_one(monkeypatch):
    (finding,) = import_package("transformers", "json")
    assert "tested with" not in finding["found"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.0.0")
    (finding,) = import_package("transformers", "json")
    assert finding["found"].startswith("4.0.0; hpt is tested with <5.20")


@pytest.fixture
def broken_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flash_attn is installed and its import crashes; everything else is missing."""
    (tmp_path / "flash_attn.py").write_text("import os\nos.abort()\n")
    (tmp_path / "flash_attn-2.8.3.dist-info").mkdir()
    (tmp_path / "flash_attn-2.8.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nVersion: 2.8.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    packages = [Package("flash-attn", "flash_attn", ""), Package("no-such-package", "none", "pip install it")]
    monkeypatch.setattr(installation, "PACKAGES", packages)
    monkeypatch.setattr(diagnosis, "examine", lambda: iter([Section("machine", [note("torch", "2.13")], 0.0)]))


@pytest.mark.usefixtures("broken_packages")
def test_a_package_whose_import_crashes_is_wrong_and_the_rest_goes_on(capsys):
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "WRONG flash-attn: was ended by SIGABRT" in out
    assert "no-such-package: not installed (pip install it)" in out
    assert "disk of this folder: " in out
    assert "torch: 2.13" in out
    assert out.splitlines()[-1] == "Not all right: 1 of 1 checks failed, the first: flash-attn."


def test_a_machine_without_faults_gives_exit_code_0(monkeypatch, capsys):
    monkeypatch.setattr(installation, "PACKAGES", [Package("packaging", "packaging", "")])
    monkeypatch.setattr(diagnosis, "examine", lambda: iter([]))
    assert main(["doctor"]) == 0
    assert "\n  packaging: " in capsys.readouterr().out
    monkeypatch.setattr(diagnosis, "examine", lambda: iter([Section("loss", [fault("dh", "error 1")], 0.0)]))
    assert main(["doctor"]) == 1
