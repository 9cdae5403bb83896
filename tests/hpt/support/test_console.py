"""hpt.support.console: text of others neither controls the terminal nor counts as markup."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Group
from rich.text import Text

from hpt.commands import main as commands
from hpt.support.console import PlainConsole, visible
from hpt.support.errors import HptError
from hpt.support.messages import printing_messages, show
from hpt.support.terminal import as_text, plain_table, print_results

HOSTILE = "[/red]:smile:\x1b]0;mine\x07\x9b2J\r\u202e\x7f"
SHOWN = "[/red]:smile:␛]0;mine␇\\u009b2J␍\\u202e␡"


def test_control_characters_are_shown_and_lines_and_tabs_are_kept() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("a\tb\nc é 漢 😀") == "a\tb\nc é 漢 😀"


def test_every_mark_that_changes_the_direction_of_text_is_shown() -> None:
    """Those that Unicode gives the property Bidi_Control."""
    marks = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    assert visible(marks) == "".join(f"\\u{ord(mark):04x}" for mark in marks)


def test_what_is_printed_has_none_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    table = plain_table(HOSTILE, HOSTILE, HOSTILE)
    table.add_row(HOSTILE, HOSTILE)
    logger = logging.getLogger("hpt.tests")
    with printing_messages():
        logger.warning("%s", HOSTILE)
        show(logger, Group(table))
        print_results(HOSTILE, table)
    captured = capsys.readouterr()
    assert captured.out.count(SHOWN) == 6
    assert SHOWN in captured.err
    assert as_text(table).count(SHOWN) == 5
    assert not set(captured.out + captured.err) & set("\x1b\x07\x9b\r\u202e\x7f")


def test_an_error_of_a_command_has_none_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise HptError(HOSTILE)

    monkeypatch.setattr(commands.report, "run", fail)
    assert commands.main(["report", "nowhere"]) == 2
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


def test_colours_of_our_own_are_sent() -> None:
    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text("\x1b[2J", style="red"))
    assert console.file.getvalue() == "\x1b[31m␛[2J\x1b[0m\n"  # type: ignore[attr-defined]


def test_results_that_cannot_be_written_are_an_error_unless_the_reader_has_seen_enough() -> None:
    script = (
        "import sys; from hpt.support.errors import HptError; from hpt.support.terminal import print_results\n"
        "try:\n    print_results('x' * 100_000)\nexcept HptError as error:\n    sys.exit(str(error))"
    )
    command = [sys.executable, "-c", script]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    message = "the results cannot be written to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")
