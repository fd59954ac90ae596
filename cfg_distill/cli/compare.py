"""``cfg-distill compare``: paired differences of two studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments


def run(argv: Sequence[str]) -> None:
    about = (
        "Paired differences of two studies on the same prompts: every system of the same name, every headline metric."
    )
    parser = Arguments("compare", about)
    parser.add_argument("first", type=Path, metavar="STUDY", help="the folder of a finished study, or its file")
    parser.add_argument(
        "second", type=Path, metavar="STUDY", help="the other one; a positive difference is in its favour"
    )
    given = parser.read(argv)
    with parser.naming_options():
        from cfg_distill.report.comparing import compare_studies

        print(compare_studies(given.first, given.second))
