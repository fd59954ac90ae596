"""``cfg-distill ratings``: opinions of the systems of a study, from the files that raters sent back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, place


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "ratings",
        "Sum up the files of raters: mean opinions, comparisons of variety, agreement, what is still undecided.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON files that raters downloaded")
    folder = parser.add_mutually_exclusive_group(required=True)
    folder.add_argument(
        "--study", type=Path, metavar="STUDY", help="the folder of the study, which keeps a copy of the key"
    )
    folder.add_argument("--listen", type=Path, metavar="DIR", help="the folder that `cfg-distill listen` wrote")
    parser.add_argument(
        "--out",
        type=place,
        metavar="DIR",
        help="a folder for ratings.json and ratings.txt; default: --study or --listen",
    )
    parser.add_argument("--add-to-front", action="store_true", help="add the mean opinions to front.json of the study")
    given = parser.read(argv)
    from cfg_distill.report.opinions import summarise

    with parser.naming_options():
        table, written = summarise(given.files, given.study or given.listen, given.out, given.add_to_front)
    print(table)
    print(f"\nWrote {', '.join(map(str, written))}.")
