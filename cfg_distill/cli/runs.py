"""``cfg-distill runs``: the runs of fits, with their state, time, last values and size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "runs", "List the runs in folders, those of studies included: state, step, time, last values, size."
    )
    where = "folders of runs; default: runs"
    parser.add_argument("folders", nargs="*", type=Path, default=[], metavar="DIR", help=where)
    given = parser.read(argv)
    from cfg_distill.recipe.listing import runs_in, table_of

    with parser.naming_options():
        found = runs_in(given.folders or [Path("runs")])
    print(table_of(found))
