"""``cfg-distill generate``: samples of a model folder, printed, and written as files on request."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cfg_distill.cli.arguments import Arguments, add_common, add_sampling, check, place, take_anneal
from cfg_distill.errors import ConfigError

_NO_MODEL = (
    "Option `--model`: expected the model that draws the samples, but it is missing. Give `--model tunes:base` for tunes (it"
    " comes with this package), a hub name such as `facebook/musicgen-small` for music, or the folder of an export"
    " (`students/small`)."
)

_ONE_BY_ONE = {"--prompts": "`--prompt` takes texts, each in quotes; a file of prompts is for `cfg-distill evaluate`."}


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "generate",
        "Draw samples of a model. With --out, tunes are written as ABC, MIDI and WAV, sound as WAV.",
        _ONE_BY_ONE,
    )
    parser.add_argument("--model", metavar="DIR", help="a model folder, a hub name, or tunes:base")
    parser.add_argument(
        "--prompt", dest="prompts", nargs="+", required=True, metavar="TEXT", help="one or more prompts, each in quotes"
    )
    parser.add_argument("--guidance", type=float, default=1.0, metavar="G", help="scale of guidance; 1 is none")
    dial = (
        "what the change of an adapter is multiplied by; of one trained with a dial, 0 is no guidance and 1 all of it"
    )
    parser.add_argument("--dial", type=float, metavar="S", help=dial)
    parser.add_argument(
        "--negative-system", metavar="TEXT", help="system message of the negative branch; it keeps the prompt"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument(
        "--out", type=place, metavar="DIR", help="a folder for the samples as files; default: none, for sound samples"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    parser.add_argument("--melody", metavar="FILE", help="a sound file that a melody model follows")
    conditions = "what else the prompts condition on, for models that read it: bpm=96"
    parser.add_argument("--condition", dest="conditions", nargs="+", default=[], metavar="NAME=TEXT", help=conditions)
    add_sampling(parser, samples=4)
    add_common(parser, "wav")
    given = parser.read(argv)
    take_anneal(given)
    if given.model is None:
        raise ConfigError(_NO_MODEL)

    from cfg_distill.evaluation.generating import GenerateRequest
    from cfg_distill.evaluation.written import remarks_on, show, write
    from cfg_distill.recipe.quiet import without_bars

    without_bars()
    request = GenerateRequest(**vars(given))
    check(parser, request)
    samples = request.draw()
    # Written first: a reader that goes away (head), or a terminal that lacks a letter, must not cost the samples.
    said = [] if request.folder is None else write(samples, request.folder, request.renderer, request.audio)
    show(samples, request.renderer)
    for line in said:
        print(line)
    for line in remarks_on(samples, request.renderer):
        print(line, file=sys.stderr)
