"""A plan for people to read."""

from __future__ import annotations

from rich.table import Table

from hpt.memory.hardware import GIB
from hpt.memory.parts import MOMENTS
from hpt.memory.plan import Plan
from hpt.support.terminal import plain_table


def plan_table(plan: Plan) -> Table:
    """The parts of a plan by the moment of a step, in GiB, or MiB where none is needed; each column adds up."""
    unit, written = (GIB, "GiB") if plan.peak >= GIB else (2**20, "MiB")
    columns = [*MOMENTS, *(["host"] if plan.host else [])]
    count = f"{plan.parameters / 1e9:.2f}B parameters" if plan.parameters >= 1e8 else f"{plan.parameters:,} parameters"
    adapters = f" + {plan.adapters / 1e6:.1f}M of adapters" if plan.adapters else ""
    where = plan.hardware.name if plan.hardware.gpus == 1 else f"each of {plan.hardware.gpus} x {plan.hardware.name}"
    title = (
        f"{plan.config.model.path}: {count}{adapters}, micro-batches of {plan.tokens:,} tokens\n{written} on {where}"
    )
    names = {"loss": "forward, loss", "host": "CPU memory"}
    table = plain_table(title, "", *(names.get(column, column) for column in columns))
    for part in plan.parts:
        table.add_row(part.name, *(_number(getattr(part, column), unit) for column in columns))
    table.add_section()
    table.add_row("sum", *(_number(plan.at(column), unit) for column in columns), style="bold")
    return table


def summary(plan: Plan) -> str:
    """One line: the two peaks, and whether they fit."""
    peaks = f"rollout {_size(plan.rollout_peak)}, training {_size(plan.training_peak)}"
    if plan.host:
        peaks += f", CPU memory for what is offloaded {_size(plan.host)}"
    gpu, host = plan.hardware.gpu_bytes, plan.hardware.host_bytes
    rooms = [_size(gpu)] if gpu is not None else []
    if host is not None and (gpu is None or (plan.host and not plan.fits)):
        rooms.append(f"{_size(host)} of CPU memory")
    verdict = f": {'fits' if plan.fits else 'does NOT fit'} into {' and '.join(rooms)}" if rooms else ""
    return f"Predicted peak memory{' of tensors' if gpu is None else ''}: {peaks}{verdict}"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _number(count: int, unit: int) -> str:
    if not count:
        return ""
    return f"{count / unit:.2f}" if count >= unit / 100 else "<0.01"
