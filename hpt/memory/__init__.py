"""Predicts a run's peak memory before anything is loaded, and names the single changes that would make it fit."""

from hpt.memory.advice import advice_lines
from hpt.memory.plan import MemoryPlan, make_plan
from hpt.memory.preflight import check_memory

__all__ = ["MemoryPlan", "advice_lines", "check_memory", "make_plan"]
