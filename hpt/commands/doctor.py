"""`hpt doctor`: what this machine has, and whether the loss is right on it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpt.commands.arguments import CommandParser

if TYPE_CHECKING:
    from upge.diagnosis.doctor import Section

HELP = "what this machine has, and whether the kernels are right and fast on it"
WRONG = 1
IMPORT_LIMIT = 120.0  # seconds


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
Look at packages, memory, disks and GPUs, check the loss against float64, and on a GPU time it.
Each check is a process of its own with a time limit, so a crash or a hang is a finding. Every installed package is
imported, which takes most of the time.
Exit code 1 if something is not as it should be. `python -m upge doctor` is the part without hpt."""


def run(options: argparse.Namespace) -> int:
    from rich.text import Text
    from upge.commands.doctor import lines
    from upge.diagnosis.doctor import is_right, verdict

    from hpt.support.messages import console
    from hpt.support.terminal import print_results

    sections = []
    with console.status("importing packages and checking the loss"):
        for section in _sections():
            title, *others = lines(section)
            text = Text("\n".join([title, *others]))
            text.stylize("bold", 0, len(title))
            text.highlight_words(["WRONG"], "bold red")
            print_results(text)
            sections.append(section)
    right = is_right(sections)
    print_results(Text(verdict(sections), style="bold green" if right else "bold red"))
    return 0 if right else WRONG


def _sections() -> Iterator[Section]:
    from upge.diagnosis.doctor import Check, Section, examine, run_checks
    from upge.diagnosis.machine import version

    from hpt.support.installation import PACKAGES, import_package, missing, resources

    yield Section("resources", resources(), 0.0)
    installed = [package for package in PACKAGES if version(package.name) is not None]
    checks = [
        Check(package.name, import_package, {"name": package.name, "module": package.module}, IMPORT_LIMIT)
        for package in installed
    ]
    start = time.monotonic()
    imported = list(run_checks(checks))
    findings = [finding for section in imported for finding in section.findings]
    findings += [missing(package) for package in PACKAGES if package not in installed]
    yield Section("packages", findings, time.monotonic() - start)
    yield from examine()
