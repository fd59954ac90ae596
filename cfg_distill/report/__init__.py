"""report.html, and what a person decides by: the choice of a point, two studies compared. No torch in here."""

from cfg_distill.report.page import write_report

__all__ = ["write_report"]
