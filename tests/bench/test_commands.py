"""`python -m bench`: its list of commands."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest
from upge.command_line import command_descriptions, main

from bench.output import output_path


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(command_descriptions("bench")) == {
        "adopt",
        "compile",
        "demo",
        "faults",
        "generate",
        "gpu",
        "loss",
        "memory",
        "model",
        "mutation",
        "plans",
        "probe",
        "report",
        "reproduce",
        "rollout",
        "step_time",
        "train",
    }
    assert main("bench", ["--help"]) == 0
    printed = capsys.readouterr().out
    for name, description in command_descriptions("bench").items():
        assert f"{name:<10} {description}" in printed
        assert description.endswith((".", ":"))


def test_an_unknown_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("bench", ["compare"]) == 2
    assert "no command 'compare'" in capsys.readouterr().err


COMMANDS = "adopt demo faults generate gpu loss memory model mutation plans probe reproduce rollout step_time train"


@pytest.mark.parametrize("command", COMMANDS.split())
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"bench.commands.{command}").main(["--help"])
    assert f"python -m bench {command}" in capsys.readouterr().out


def test_a_result_that_cannot_be_written_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    assert output_path(str(tmp_path / "new" / "loss")).parent.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match="file: cannot be written: File exists"):
        output_path(str(tmp_path / "file" / "loss"))
    with pytest.raises(argparse.ArgumentTypeError, match="/proc: cannot be written"):
        output_path("/proc/loss")
