"""``cfg-distill validate-metrics``: which metrics order samples of known order rightly, and what buys the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, add_trust
from cfg_distill.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """The exit code: 0 where every metric holds, 1 where one is bought or the prompts are too few to tell."""
    parser = Arguments(
        "validate-metrics",
        "Score samples whose order is known: real > guided > base > degenerate in quality; rewritings of one sample earn"
        " next to no diversity. Exit code 1 when a metric is bought.",
    )
    known = "metrics file, study, recipe with a reward, or model folder"
    parser.add_argument("file", metavar="RECIPE_OR_METRICS", help=known)
    parser.add_argument("--ladder", default="", metavar="NAME", help="tunes, text, sound or the class path of your own")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts; default: the ladder's own")
    parser.add_argument(
        "--share", type=float, default=0.2, help="of the diversity of different samples that rewritings may reach"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_trust(parser)
    given = parser.read(argv)

    from rich.console import Console

    from cfg_distill.evaluation.ladder_table import ladder_table
    from cfg_distill.evaluation.validating import ValidateRequest

    request, options = (
        ValidateRequest(**{key: value for key, value in vars(given).items() if key != "json"}),
        parser.options(),
    )
    if problems := request.problems():
        raise ConfigError([problem.told(options) for problem in problems])
    console = Console(stderr=True)
    with console.status("loading") as status:  # shows on a terminal only

        def show(rung: str) -> None:
            status.update(f"scoring {rung}")
            if not console.is_terminal:
                console.print(f"scoring {rung}", highlight=False, soft_wrap=True)

        found = request.plan.run(show)
    if given.json:
        print(json.dumps({"ladder": request.plan.ladder_name, **found.as_json()}, indent=1))
    else:
        print(f"Ladder: {request.plan.ladder_name}\n\n{ladder_table(found)}")
    return 0 if found.holds else 1
