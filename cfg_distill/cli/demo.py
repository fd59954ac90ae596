"""``cfg-distill demo``: a page to play with the models of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, add_trust


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "demo",
        "Serve a page that samples any setting of a study's knob beside the guided base, with the place on the front. It needs"
        " the demo extra, and no network.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="the folder of a finished study, or its file")
    against = "the guided system to compare with; default: the one that was distilled"
    parser.add_argument("--against", metavar="NAME", help=against)
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="samples per model")
    host = "the address to serve at; 0.0.0.0 lets others on your network reach the page"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=host)
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="of the page; 0 for any that is free")
    add_trust(parser)
    given = parser.read(argv)
    from cfg_distill.recipe.quiet import without_bars
    from cfg_distill.report.demo import DemoRequest, serve

    without_bars()
    with parser.naming_options():
        serve(DemoRequest(**vars(given)))
