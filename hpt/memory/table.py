"""A memory plan as a table and as one line of text."""

from __future__ import annotations

from rich.table import Table

from hpt.memory.components import PHASES
from hpt.memory.hardware import GIB
from hpt.memory.plan import MemoryPlan
from hpt.support.terminal import plain_table

MIB = 2**20
_HEADERS = {"loss": "forward, loss", "host": "CPU memory"}


def plan_table(plan: MemoryPlan) -> Table:
    """One row per component, one column per phase of a step, and their sums; in GiB, or MiB for small plans."""
    unit, unit_name = (GIB, "GiB") if plan.peak >= GIB else (MIB, "MiB")
    columns = [*PHASES, "host"] if plan.host else [*PHASES]
    table = plain_table(_title(plan, unit_name), "", *(_HEADERS.get(column, column) for column in columns))
    for component in plan.components:
        table.add_row(component.name, *(_cell(getattr(component, column), unit) for column in columns))
    table.add_section()
    table.add_row("sum", *(_cell(plan.total(column), unit) for column in columns), style="bold")
    return table


def summary(plan: MemoryPlan) -> str:
    """One line: the peaks of rollout and training, and whether they fit."""
    peaks = f"rollout {_size(plan.rollout_peak)}, training {_size(plan.training_peak)}"
    if plan.host:
        peaks += f", CPU memory for what is offloaded {_size(plan.host)}"
    gpu, host = plan.hardware.gpu_bytes, plan.hardware.host_bytes
    limits = [_size(gpu)] if gpu is not None else []
    if host is not None and (gpu is None or (plan.host and not plan.fits)):
        limits.append(f"{_size(host)} of CPU memory")
    answer = f": {'fits' if plan.fits else 'does NOT fit'} into {' and '.join(limits)}" if limits else ""
    return f"Predicted peak memory{' of tensors' if gpu is None else ''}: {peaks}{answer}"


def _title(plan: MemoryPlan, unit_name: str) -> str:
    count = f"{plan.parameters / 1e9:.2f}B parameters" if plan.parameters >= 1e8 else f"{plan.parameters:,} parameters"
    adapters = f" + {plan.adapters / 1e6:.1f}M of adapters" if plan.adapters else ""
    where = plan.hardware.name if plan.hardware.gpus == 1 else f"each of {plan.hardware.gpus} x {plan.hardware.name}"
    model = f"{plan.config.model.path}: {count}{adapters}"
    return f"{model}, micro-batches of {plan.tokens:,} tokens\n{unit_name} on {where}"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


def _cell(count: int, unit: int) -> str:
    if not count:
        return ""
    return f"{count / unit:.2f}" if count >= unit / 100 else "<0.01"
