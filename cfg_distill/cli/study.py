"""``cfg-distill study``: a whole study in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from cfg_distill.cli.arguments import Arguments, place

_NO_OPTION = {"--config": "A study is named without an option: `cfg-distill study STUDY.yaml`."}


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "study", "Fits, merges, baselines and evaluation in one file. Run again, it goes on.", _NO_OPTION
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study; recipes/... finds a shipped one")
    parser.add_argument("--out", type=place, metavar="DIR", help="the folder of the results; default: as the file says")
    parser.add_argument(
        "--overwrite", action="store_true", help="the file changed since the study was begun: remake what depends on it"
    )
    parser.add_argument(
        "--remake",
        action="append",
        metavar="KIND",
        default=[],
        help="make steps again that are done, and what depends on them: evaluate, time, fit, ...; may be repeated",
    )
    parser.add_argument(
        "--inline", action="store_true", help="put the sound into report.html, so that it can be moved alone"
    )
    given = parser.read(argv)
    from cfg_distill.errors import ConfigError, nearest
    from cfg_distill.report import run_study
    from cfg_distill.study.steps import StepKind

    kinds = get_args(StepKind)
    for kind in given.remake:
        if kind not in kinds:
            raise ConfigError(
                f"Option `--remake`: expected {', '.join(kinds)}, but got `{kind}`.{nearest(kind, kinds)}"
            )
    run_study(given.study, given.out, given.overwrite, given.inline, given.remake)
