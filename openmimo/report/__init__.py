"""The report of a run: reads the files of a run folder and renders them; no stage imports it."""

from openmimo.report.render import ReportPaths, render_report

__all__ = ["ReportPaths", "render_report"]
