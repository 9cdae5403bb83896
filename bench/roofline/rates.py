"""The numbers that the model multiplies with: what is known of the GPUs, and what is assumed."""

from __future__ import annotations

from dataclasses import dataclass, fields

FLOPS_PER_CYCLE = 4096  # of a multiprocessor's tensor cores, dense bf16 and fp16: 989 TFLOP/s at 132 x 1.83 GHz
TF32_FLOPS_PER_CYCLE = 2048
SCHEDULERS = 4  # of a multiprocessor; each issues one instruction of a warp in a cycle
REGISTERS = 65536
SHARED_BYTES = 227 << 10


@dataclass(frozen=True)
class Gpu:
    """multiprocessors, and bytes a second of its memory, from NVIDIA's data sheets (SXM boards).

    device: the board's name in the driver and in PyTorch. H100 PCIe and NVL, GH200 and H200 NVL have others.
    """

    name: str
    device: str
    multiprocessors: int
    bandwidth: float


GPUS = {
    "h100": Gpu("H100 SXM", "NVIDIA H100 80GB HBM3", 132, 3.35e12),
    "h200": Gpu("H200 SXM", "NVIDIA H200", 132, 4.8e12),
}


@dataclass(frozen=True)
class Assumptions:
    """Numbers that nobody has measured for these kernels. The first measurement replaces them."""

    bare: float  # FLOP/s of the bare GEMMs; published for cuBLAS in bf16 on an H100: 646e12 to 770e12
    bare_busy: float  # share of the cycles in which they keep the tensor cores busy; with `bare` it gives the clock
    descriptors_busy: float  # the same in the main loop of a kernel that loads by descriptors
    pointers_busy: float  # and of one whose threads load
    stall: float  # cycles for each instruction that a scheduler issues before or after a main loop
    latency: float  # cycles of a round trip to memory
    bandwidth: float  # share of the data sheet's
    launch: float  # seconds from one kernel to the next

    @property
    def clock(self) -> float:
        """Cycles a second, under the power that GEMMs draw."""
        return self.bare / (FLOPS_PER_CYCLE * GPUS["h100"].multiprocessors * self.bare_busy)


ASSUMED = {
    "optimistic": Assumptions(720e12, 0.90, 0.95, 0.91, 1.5, 700.0, 0.93, 2e-6),
    "central": Assumptions(720e12, 0.92, 0.92, 0.87, 2.0, 1000.0, 0.90, 4e-6),
    "pessimistic": Assumptions(720e12, 0.94, 0.88, 0.80, 3.0, 1500.0, 0.85, 8e-6),
}
MEANINGS = {
    "bare": "FLOP/s of the bare GEMMs",
    "bare_busy": "share of cycles with busy tensor cores, bare GEMMs",
    "descriptors_busy": "share of cycles with busy tensor cores, loops with descriptors",
    "pointers_busy": "share of cycles with busy tensor cores, loops with pointers",
    "stall": "cycles for each instruction of a scheduler outside the loop",
    "latency": "cycles of a round trip to memory",
    "bandwidth": "share of the data sheet's bandwidth",
    "launch": "seconds from one kernel to the next",
    "clock": "cycles a second (follows from the first two lines)",
}
assert MEANINGS.keys() == {field.name for field in fields(Assumptions)} | {"clock"}
