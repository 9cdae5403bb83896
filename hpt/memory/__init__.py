"""Predicts the memory of a run before anything is loaded, and says which single change would make it fit."""

from hpt.memory.check import advice_lines, check_memory
from hpt.memory.plan import Plan, make_plan

__all__ = ["Plan", "advice_lines", "check_memory", "make_plan"]
