"""``cfg-distill evaluate``: points of a front for finished models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, add_common, add_sampling, check, place, take_anneal


def run(argv: Sequence[str]) -> None:
    parser = Arguments("evaluate", "Quality and diversity of finished models on a file of prompts.")
    models = (
        "model folders, hub names or tunes:base; tunes:base@2 is guided by 2, whatever --guidance says of the others"
    )
    parser.add_argument("--model", dest="models", nargs="+", required=True, metavar="DIR", help=models)
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="prompts: text (one per line), JSON lines or CSV"
    )
    parser.add_argument("--out", type=place, metavar="DIR", help="a folder for report.html, front.json and more")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="of sampling")
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0], metavar="G", help="scales; 1 is none")
    dials = "of the adapters among the models: what their change is multiplied by, each at each"
    parser.add_argument("--dial", nargs="+", type=float, default=[], metavar="S", help=dials)
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="a YAML file: name to class_path and init_args")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once")
    parser.add_argument("--overwrite", action="store_true", help="replace results in --out")
    parser.add_argument(
        "--written", type=int, default=12, metavar="N", help="prompts of which --out gets samples, to be read and heard"
    )
    parser.add_argument(
        "--inline", action="store_true", help="put the sound into report.html, so that it can be moved alone"
    )
    add_sampling(parser, samples=8, temperatures=True)
    add_common(parser, "flac")
    given = parser.read(argv)
    if given.out is None:
        parser.refuse_idle(argv, ["--written", "--inline", "--audio", "--overwrite"], "--out")
    take_anneal(given)

    from cfg_distill.evaluation.models import evaluate_request
    from cfg_distill.evaluation.requests import EvaluateRequest
    from cfg_distill.recipe.quiet import without_bars

    inline = vars(given).pop("inline")
    without_bars()
    request = EvaluateRequest(**vars(given))
    check(parser, request)
    print(evaluate_request(request))
    if given.out is not None:
        from cfg_distill.report import write_report

        print(f"Wrote {write_report(given.out, inline)}.")
