"""Check the loss on this machine: versions, the GPU, each kernel against float64, and its speed.

On a GPU, kernels that were never used before are compiled first, which takes most of the time. Without a GPU the torch
backend is checked. Each check is a process of its own with a time limit, so a crash or a hang is a finding. The exit
status is 1 if something is not as it should be.
"""

from __future__ import annotations

import argparse

from ..diagnosis.doctor import Section, examine, is_right, verdict


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m upge doctor", description=__doc__)
    parser.parse_args(arguments)
    sections = []
    for section in examine():
        print("\n".join(lines(section)), flush=True)
        sections.append(section)
    print(verdict(sections))
    return 0 if is_right(sections) else 1


def lines(section: Section) -> list[str]:
    """What to print: notes and what is wrong; of what is right, how much."""
    right = sum(finding["held"] is True for finding in section.findings)
    shown = [f"{section.title} ({section.seconds:.1f} s)"]
    for finding in section.findings:
        if finding["held"] is not True:
            mark = "WRONG " if finding["held"] is False else ""
            shown += _indented(f"{mark}{finding['what']}: {finding['found']}")
    if right:
        shown.append(f"  right: {right} of {sum(finding['held'] is not None for finding in section.findings)}")
    return shown


def _indented(text: str) -> list[str]:
    first, *others = text.splitlines()
    return [f"  {first}", *(f"      {line}" for line in others)]
