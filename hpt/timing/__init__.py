"""Predicts how long a run takes, phase by phase of a step, and names the single change that would help most."""

from hpt.timing.advice import Speedup, speedups, why_no_speedups
from hpt.timing.plan import StepTime, TimePlan, make_time_plan

__all__ = ["Speedup", "StepTime", "TimePlan", "make_time_plan", "speedups", "why_no_speedups"]
