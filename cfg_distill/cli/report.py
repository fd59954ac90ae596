"""``cfg-distill report``: the page of a finished study, written anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments


def run(argv: Sequence[str]) -> None:
    parser = Arguments("report", "Write report.html, the page of a finished study or evaluation, anew.")
    parser.add_argument("study", type=Path, metavar="STUDY", help="the folder of a finished study, or its file")
    parser.add_argument(
        "--inline", action="store_true", help="put the sound into the page, so that it can be moved alone"
    )
    given = parser.read(argv)
    with parser.naming_options():
        from cfg_distill.report.page import write_report

        print(f"Wrote {write_report(given.study, given.inline)}.")
