"""``cfg-distill evaluate``: points of a front for finished models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, add_dtype, add_sampling, add_seconds


def run(argv: Sequence[str]) -> None:
    parser = Arguments("evaluate", "Quality and diversity of finished models on a file of prompts.")
    parser.add_argument(
        "--model", nargs="+", required=True, metavar="DIR", help="model folders, hub names or tunes:base"
    )
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="prompts: text (one a line), JSON lines or CSV"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder for front.json, front.png and the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="of sampling")
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0], metavar="G", help="scales; 1 is none")
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="a YAML file: name to class_path and init_args")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds results")
    parser.add_argument(
        "--written", type=int, default=4, metavar="N", help="prompts of which --out gets samples, to be read and heard"
    )
    add_sampling(parser, samples=8, max_new_tokens=None, temperatures=True)
    add_seconds(parser)
    add_dtype(parser)
    given = parser.read(argv)
    from cfg_distill.evaluation.models import evaluate_models

    evaluate_models(
        models=given.model,
        prompts=given.prompts,
        out=given.out,
        samples=given.samples,
        seeds=given.seeds,
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        guidance=given.guidance,
        metrics=given.metrics,
        batch_size=given.batch_size,
        overwrite=given.overwrite,
        seconds=given.seconds,
        written=given.written,
        dtype=given.dtype,
    )
