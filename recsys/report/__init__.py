"""The report of a run: one HTML file for people (`write_report`), one table for the terminal (`stage_table`).

Plain data in (`ReportData`), a page out: nothing here fits, ranks or reads a file.
"""

from recsys.report.data import (
    DictionaryRow,
    HistoryRow,
    ReportData,
    SlateRow,
    SourceRow,
    UserPage,
    Weights,
)
from recsys.report.html import render_report, write_report
from recsys.report.terminal import stage_table

__all__ = [
    "DictionaryRow",
    "HistoryRow",
    "ReportData",
    "SlateRow",
    "SourceRow",
    "UserPage",
    "Weights",
    "render_report",
    "stage_table",
    "write_report",
]
