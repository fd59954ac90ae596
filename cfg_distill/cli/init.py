"""``cfg-distill init``: recipes and a study for a model of one's own. What is not given is asked on a terminal."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, place
from cfg_distill.errors import ConfigError, Problem

_QUESTIONS = {
    "model": "Model (a folder, a hub name, or tunes:base)",
    "prompts": "Prompts (a text file, one per line)",
    "device": "Device (cpu or gpu)",
}


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "init",
        "Write recipes of two students and a study of them for your own model. On a terminal it asks for what is not given.",
    )
    parser.add_argument("--model", metavar="DIR", help="a model folder, a hub name, or tunes:base")
    prompts = "a file with one prompt per line, or JSON lines; every third is kept for the report"
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=prompts)
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), help="where the students are trained; default: a GPU if any"
    )
    parser.add_argument("--out", type=place, default=Path("my-study"), metavar="DIR", help="the folder to write")
    guidance = "gamma, the scale of the guidance to distil; default: what is usual for such models"
    parser.add_argument("--guidance", dest="scale", type=float, metavar="G", help=guidance)
    embedder = "what says how much samples differ: the folder or hub name of an encoder, or a class of yours"
    parser.add_argument("--embedder", default="", metavar="NAME", help=embedder)
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier init wrote")
    given = parser.read(argv)
    with parser.naming_options():
        _ask(given)
        from cfg_distill.recipe.quiet import without_bars
        from cfg_distill.study.starting import InitRequest, write_start

        without_bars()
        files, notes = write_start(InitRequest(**vars(given)))
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    print(f"Wrote {', '.join(map(str, files))}. Read them: steps, length and learning rate are starting points.")
    command = ["study"] if files[-1].stem == "study" else ["fit", "--config"]
    print(f"Then: {shlex.join(['cfg-distill', *command, str(files[-1])])}")


def _ask(given: argparse.Namespace) -> None:
    """Ask for what is missing.

    Raises:
        ConfigError: there is nobody to ask.
    """
    missing = [key for key in ("model", "prompts") if vars(given)[key] is None]
    if missing and not sys.stdin.isatty():
        raise ConfigError(
            [Problem(key, "expected, but it is missing, and this is no terminal to ask on.") for key in missing]
        )
    for key in missing:
        given.__dict__[key] = Path(_answer(key)) if key == "prompts" else _answer(key)
    if given.device is None:
        from cfg_distill.study import starting

        found = starting.found_device()
        given.device = (_answer("device", found) if missing else "") or found
        if given.device not in ("cpu", "gpu"):
            raise ConfigError(Problem("device", f"expected cpu or gpu, but got `{given.device}`."))


def _answer(key: str, default: str = "") -> str:
    shown = f" [{default}]" if default else ""
    try:
        while not (given := input(f"{_QUESTIONS[key]}{shown}: ").strip() or default):
            pass  # ask again
    except EOFError:
        raise ConfigError(
            Problem(key, "expected an answer, but the input ended. Pass it on the command line.")
        ) from None
    return given
