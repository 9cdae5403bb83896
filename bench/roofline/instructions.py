"""Reading the machine code of a GEMM kernel: what a step of its main loop costs, and what a tile costs beside it.

The main loop is the innermost one with multiplications (tensor-core instructions, or FFMA where there are none). A loop
is the code from a label to a branch back to it. A *step* is the shortest way around the main loop that multiplies. The
*epilogue* is the shortest way from the last step of a tile to its last store and on: to the next step in a persistent
kernel, whose tiles are all in one loop, and to the end of the program in others. The *start* is what comes before a
tile's first step. Branches for rare cases (a tile with a target, or at the vocabulary's end) are not on these ways.
Counts are of instructions that one warp issues. A *round trip* is a part of the epilogue that loads and then waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

LABEL = re.compile(r"^(\.L_x_\d+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
OPERAND_LOADS = ("UTMALDG", "LDGSTS", "LDG")
STORES = ("UTMASTG", "STG", "ST.E")
WAITS = ("SYNCS.PHASECHK", *STORES)  # what needs a load to have arrived


@dataclass(frozen=True)
class Instruction:
    name: str
    conditional: bool
    target: str | None  # the label that it may jump to

    @property
    def ends(self) -> bool:
        return self.name == "EXIT" and not self.conditional


@dataclass(frozen=True)
class Counts:
    """Instructions of a warp: a step of the main loop, its multiplications among them, a tile's start and epilogue.

    round_trips: to memory, that the epilogue waits for one after the other.
    load:        the instruction that loads the operands.
    """

    step: int
    multiplications: int
    start: int
    epilogue: int
    round_trips: int
    load: str


def instructions(code: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of `nvdisasm -c`, and where each label points to."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif instruction := INSTRUCTION.search(line):
            predicate, name, operands = instruction.groups()
            # A loop may be left by a call that does not return.
            target = TARGET.search(operands) if name.startswith(("BRA", "CALL")) else None
            # `BRA.U UP0, label` has its condition among the operands.
            conditional = predicate is not None or (target is not None and "," in operands)
            found.append(Instruction(name, conditional, target[1] if target else None))
    return found, labels


def count(code: str, multiplies: Callable[[str], bool]) -> Counts | None:
    """What a step and a tile cost, or None where no loop multiplies. multiplies: says so of an instruction's name."""
    program = _Program(*instructions(code))
    loops = [
        (program.labels[jump.target], place)
        for place, jump in enumerate(program.all)
        if jump.target in program.labels and program.labels[jump.target] <= place
    ]
    products = list(accumulate((multiplies(i.name) for i in program.all), initial=0))
    working = [
        (first, last)
        for first, last in loops
        # Where a wait is over, code at the end of the program jumps back too. Nothing in between leads there.
        if products[last + 1] > products[first] and program.way(first, last)
    ]
    if not working:
        return None
    # The main loop of an fp32 kernel is the one with most FFMA: others have a few in their epilogue.
    first, last = min(working, key=lambda loop: (products[loop[0]] - products[loop[1] + 1], loop[1] - loop[0]))
    inner = [(a, b) for a, b in working if first <= a and b <= last]
    first, last = min(inner, key=lambda loop: loop[1] - loop[0])
    product = next(place for place in range(first, last + 1) if multiplies(program.all[place].name))
    step = program.way(first, product, last)
    start, epilogue = _around(program, first, product, last)
    names = [program.all[place].name for place in step]
    return Counts(
        step=len(step),
        multiplications=sum(map(multiplies, names)),
        start=start,
        epilogue=len(epilogue),
        round_trips=_round_trips([program.all[place].name for place in epilogue]),
        load=next((load for load in OPERAND_LOADS if any(name.startswith(load) for name in names)), ""),
    )


def _around(program: _Program, first: int, product: int, last: int) -> tuple[int, list[int]]:
    """The instructions that start a tile, and those of its epilogue."""
    end = len(program.all) - 1
    step = set(program.way(first, product, last))
    inside = program.last_store(first, last)
    if inside is not None:  # all tiles in one loop
        start = len(program.way(first, product, longest=True)) - len(program.way(first, product))
        tile = program.way(first, product, inside, last)
    else:
        start = len(program.way(0, first)) - 1
        stores = (place for place in range(end, last, -1) if program.all[place].name.startswith(STORES))
        store = next((place for place in stores if program.way(product, place)), product)
        ends = next((place for place in range(store, end + 1) if program.all[place].ends), store)
        # Code for a rare branch may lie between the last store and the end.
        tile = program.way(product, store, ends) or program.way(product, store)
    return start, [place for place in tile if place not in step]


def _round_trips(names: list[str]) -> int:
    """Groups of loads with a wait after each."""
    count, loading = 0, False
    for name in names:
        if name.startswith(("UTMALDG", "LDG")):
            loading = True
        elif loading and name.startswith(WAITS):
            count, loading = count + 1, False
    return count


class _Program:
    """Ways through a program's instructions, forward ones alone."""

    def __init__(self, all: list[Instruction], labels: dict[str, int]):
        self.all = all
        self.labels = labels

    def last_store(self, first: int, last: int) -> int | None:
        return next((i for i in range(last, first - 1, -1) if self.all[i].name.startswith(STORES)), None)

    def way(self, *through: int, longest: bool = False) -> list[int]:
        """The instructions of the shortest (longest) way through the given ones; none where one is not reached."""
        places = [through[0]]
        for a, b in pairwise(through):
            part = self._between(a, b, longest)
            if not part:
                return []
            places += part[1:]
        return places

    def _between(self, a: int, b: int, longest: bool) -> list[int]:
        sign = -1 if longest else 1
        best: dict[int, tuple[int, int]] = {a: (0, a)}  # cost, and where from
        for place in range(a, b):
            if place in best:
                for following in self._next(place):
                    cost = best[place][0] + sign
                    if place < following <= b and (following not in best or cost < best[following][0]):
                        best[following] = cost, place
        if b not in best:
            return []
        places = [b]
        while places[-1] != a:
            places.append(best[places[-1]][1])
        return places[::-1]

    def _next(self, place: int) -> list[int]:
        instruction = self.all[place]
        if instruction.ends:
            return []
        jumps = [self.labels[instruction.target]] if instruction.target in self.labels else []
        return jumps if jumps and not instruction.conditional else [place + 1, *jumps]
