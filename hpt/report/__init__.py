"""Draws a run's records as figures, tables and one HTML page (`hpt report`)."""

from hpt.report.page import report
from hpt.report.summary import summary_figure
from hpt.report.tables import accuracy_table

__all__ = ["accuracy_table", "report", "summary_figure"]
