"""``cfg-distill merge``: one model folder out of several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, place
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.folders import adapter_config, is_adapter
from cfg_distill.merging import METHODS
from cfg_distill.merging.methods import FARTHEST


def run(argv: Sequence[str]) -> None:
    about = "Merge model folders of one architecture, or LoRA adapters of one base: safetensors in, safetensors out."
    parser = Arguments("merge", about)
    parser.add_argument("--models", nargs="+", type=Path, default=[], metavar="DIR", help="the folders to merge")
    parser.add_argument(
        "--weights",
        nargs="*",
        type=float,
        default=[],
        metavar="W",
        help="one per model for lerp, slerp, weighted and sum; one number for liti and ema; none for soup",
    )
    methods = "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
    parser.add_argument("--method", choices=METHODS, help=f"{methods}; default: lerp, or the method of --study")
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="the model that all others were trained from; for adapters the base, unless an adapter is named",
    )
    parser.add_argument("--study", type=Path, metavar="STUDY", help="a study, whose two students are merged at --knob")
    knob = "0 is the first student of --study, 1 the second, the one of the diversity reward; above 1 goes beyond it"
    parser.add_argument("--knob", type=float, metavar="K", help=knob)
    parser.add_argument("--out", type=place, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that holds nothing but a model")
    given = parser.read(argv)
    with parser.naming_options():
        _resolve_study(given)
        from cfg_distill.merging import merge_folders

        merge_folders(given.models, given.weights, given.method, given.out, given.start, given.overwrite)
    what = ""
    if is_adapter(given.out):
        config = adapter_config(given.out)
        what = f", an adapter of rank {config['r']} on {config['base_model_name_or_path']}; ranks add up"
    from cfg_distill.report.measured import tell_study

    said = [f"Wrote {given.out}: {given.method} of {', '.join(map(str, given.models))}{what}."]
    print("\n".join(filter(None, [*said, tell_study(given.out, given.out.name, given.models)])))


def _resolve_study(given: argparse.Namespace) -> None:
    """Put models, weights and method of a study in place of its name and the knob.

    Raises:
        ConfigError: --knob without --study or the other way round, either beside --models, or neither of all.
    """
    problems = []
    if given.study is None and given.knob is None:
        if not given.models:
            problems.append(
                Problem("models", "expected the folders to merge, but it is missing. Or give `@.study` and `@.knob`.")
            )
    else:
        for key, other in (("study", "knob"), ("knob", "study")):
            if vars(given)[key] is None:
                problems.append(Problem(key, f"expected with `@.{other}`, but it is missing."))
        decided = ("models", "weights") if given.method else ("models", "weights", "start")
        for key in decided:
            if vars(given)[key]:
                problems.append(Problem(key, "`@.study` and `@.knob` decide that. Give one or the other."))
        between = [name for name, method in METHODS.items() if method.weights in ("shares", "line")]
        if given.method and given.method not in between:
            text = f"expected a method that `@.knob` can set, one of {', '.join(between)}, but got {given.method}."
            problems.append(Problem("method", text))
        if given.knob is not None and not 1 - FARTHEST <= given.knob <= FARTHEST:
            text = f"expected a number from 0 to 1, or beyond up to {FARTHEST}, but got {given.knob:g}."
            problems.append(Problem("knob", text))
    if problems:
        raise ConfigError(problems)
    if given.study is not None:
        from cfg_distill.report.knob import line_of

        line = line_of(given.study)
        given.models, given.weights = [Path(each) for each in line.models], [1 - given.knob, given.knob]
        # Another method than that of the study may need a start model, where the study names none, or take none.
        needs = given.method is None or METHODS[given.method].start
        given.start = given.start or (line.start if needs else None)
        given.method = given.method or line.method
    given.method = given.method or "lerp"
