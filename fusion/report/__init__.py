"""What a run says of itself: summary.json for machines, report.html and a text table for people."""

from fusion.report.html import render
from fusion.report.summary import StageReport, build_summary
from fusion.report.table import result_table

__all__ = ["StageReport", "build_summary", "render", "result_table"]
