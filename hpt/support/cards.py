"""GPUs by name, with the numbers of their vendor's data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GB, TERA = 1e9, 1e12

CardName = Literal[
    "RTX3090",
    "RTX4090",
    "A10",
    "A10G",
    "L4",
    "A6000",
    "L40S",
    "A100-40",
    "A100-80",
    "H100",
    "H200",
    "B200",
]


@dataclass(frozen=True)
class Card:
    """One GPU. Rates are peaks: dense matrix products on tensor cores, and the memory's bandwidth.

    link: bytes per second to another GPU of the machine, in one direction: NVLink, else PCIe. host_link: to CPU memory.
    """

    device: str  # the word of torch's device name that tells the chip
    memory: float  # bytes
    flops_16_bit: float  # FLOP/s, bfloat16 and float16 with float32 sums
    flops_32_bit: float  # FLOP/s, float32 without TF32, as PyTorch computes by default
    bandwidth: float  # bytes per second
    link: float
    host_link: float


PCIE_4, PCIE_5 = 32 * GB, 64 * GB

# The SXM form of A100 and later. NVLink: half of what the data sheet gives for both directions.
CARDS: dict[CardName, Card] = {
    "RTX3090": Card("3090", 24 * GB, 71 * TERA, 35.6 * TERA, 936 * GB, PCIE_4, PCIE_4),
    "RTX4090": Card("4090", 24 * GB, 165.2 * TERA, 82.6 * TERA, 1008 * GB, PCIE_4, PCIE_4),
    "A10": Card("A10", 24 * GB, 125 * TERA, 31.2 * TERA, 600 * GB, PCIE_4, PCIE_4),
    "A10G": Card("A10G", 24 * GB, 70 * TERA, 35 * TERA, 600 * GB, PCIE_4, PCIE_4),
    "L4": Card("L4", 24 * GB, 121 * TERA, 30.3 * TERA, 300 * GB, PCIE_4, PCIE_4),
    "A6000": Card("A6000", 48 * GB, 154.8 * TERA, 38.7 * TERA, 768 * GB, PCIE_4, PCIE_4),
    "L40S": Card("L40S", 48 * GB, 362 * TERA, 91.6 * TERA, 864 * GB, PCIE_4, PCIE_4),
    "A100-40": Card("A100", 40 * GB, 312 * TERA, 19.5 * TERA, 1555 * GB, 300 * GB, PCIE_4),
    "A100-80": Card("A100", 80 * GB, 312 * TERA, 19.5 * TERA, 2039 * GB, 300 * GB, PCIE_4),
    "H100": Card("H100", 80 * GB, 989 * TERA, 67 * TERA, 3350 * GB, 450 * GB, PCIE_5),
    "H200": Card("H200", 141 * GB, 989 * TERA, 67 * TERA, 4800 * GB, 450 * GB, PCIE_5),
    "B200": Card("B200", 180 * GB, 2250 * TERA, 75 * TERA, 8000 * GB, 900 * GB, PCIE_5),
}

# By memory, the smallest first.
_TYPICAL: tuple[CardName, ...] = ("RTX4090", "A100-40", "L40S", "H100", "H200", "B200")


def card_of_device(device: str, memory: float) -> CardName | None:
    """The card that torch calls `device` ("NVIDIA A100-SXM4-80GB") and that has `memory` bytes; None if not known."""
    words = device.replace("-", " ").split()
    alike = [name for name, card in CARDS.items() if card.device in words]
    return min(alike, key=lambda name: abs(CARDS[name].memory - memory), default=None)


def typical_card(memory: float) -> CardName:
    """A common card with `memory` bytes, or the largest."""
    for name in _TYPICAL:
        if memory <= CARDS[name].memory * 1.08:  # a "GB" of a data sheet may be a GiB
            return name
    return _TYPICAL[-1]
