"""report.html, and what a person decides by: the choice of a point, two studies compared. No torch in here."""

from cfg_distill.report.choosing import choose_study, decide
from cfg_distill.report.comparing import compare_studies
from cfg_distill.report.page import write_report
from cfg_distill.report.studying import run_study

__all__ = ["choose_study", "compare_studies", "decide", "run_study", "write_report"]
