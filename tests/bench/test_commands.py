"""`python -m bench`: its list of commands."""

from __future__ import annotations

import importlib

import pytest

from bench.__main__ import descriptions, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(descriptions()) == {"adopt", "compile", "demo", "gpu", "loss", "memory", "reproduce", "train"}
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, description in descriptions().items():
        assert f"{name:<10} {description}" in printed
        assert description.endswith((".", ":"))


def test_an_unknown_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 2
    assert "no command 'compare'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["adopt", "demo", "gpu", "loss", "memory", "reproduce", "train"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"bench.commands.{command}").main(["--help"])
    assert f"python -m bench {command}" in capsys.readouterr().out
