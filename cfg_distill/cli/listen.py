"""``cfg-distill listen``: a page for a blind listening test of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, place


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "listen",
        "Write a page on which raters judge clips of unnamed systems. It needs no network; text models get the same page.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="the folder of a finished study, or its file")
    parser.add_argument("--out", type=place, required=True, metavar="DIR", help="the folder to write")
    sizes = "of the test; paper: 101 prompts, 3 raters, 50 comparisons per pair of systems; short: 12, 3, 6"
    parser.add_argument("--preset", choices=("short", "paper"), default="short", help=sizes)
    parser.add_argument("--prompts", type=int, metavar="N", help="prompts of which every system is rated")
    parser.add_argument("--raters", type=int, metavar="N", help="number of raters, each of whom answers everything")
    parser.add_argument("--variety", type=int, metavar="N", help="prompts of which variety is compared; 0: none")
    parser.add_argument(
        "--systems", nargs="+", default=[], metavar="NAME", help="of the study; default: those of its claims"
    )
    against = "the system that the others are compared with in variety; default: the guided one of the claims"
    parser.add_argument("--against", metavar="NAME", help=against)
    parser.add_argument("--group", type=int, default=2, metavar="N", help="clips per group whose variety is compared")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="other prompts than the study's")
    parser.add_argument("--seed", type=int, default=0, help="of the order, and of clips that are drawn anew")
    parser.add_argument("--overwrite", action="store_true", help="replace a listening test in --out")
    given = parser.read(argv)
    from cfg_distill.report.listening import make_test
    from cfg_distill.report.listening_request import ListenRequest

    with parser.naming_options():
        print(make_test(ListenRequest(**vars(given))))
