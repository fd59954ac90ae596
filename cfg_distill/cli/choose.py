"""``cfg-distill choose``: the point of a study to ship."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, place


def run(argv: Sequence[str]) -> None:
    about = "Recommend the student or merge to ship: as good as the guided base within a margin, and as diverse as possible."
    parser = Arguments("choose", about)
    parser.add_argument("study", type=Path, metavar="STUDY", help="the folder of a finished study, or its file")
    margin = "how far below the guided base the quality may lie; default: the margin of the study's claims, or 0.02"
    parser.add_argument("--margin", type=float, metavar="M", help=margin)
    guard = (
        'bounds that a point must keep, each in quotes: "rest_share<0.02"; default: the guards of the study\'s claims;'
        " nothing behind it: no bound"
    )
    parser.add_argument("--guard", nargs="*", metavar="BOUND", help=guard)
    against = "the guided system that all are compared with; default: the guidance of the study's claims"
    parser.add_argument("--against", metavar="NAME", help=against)
    parser.add_argument("--out", type=place, metavar="DIR", help="a new folder for a copy of the chosen model")
    given = parser.read(argv)
    with parser.naming_options():
        from cfg_distill.report.choosing import choose_study

        print(choose_study(given.study, given.margin, given.guard, given.against, given.out))
