"""``cfg-distill merge``: one model folder out of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments
from cfg_distill.folders import adapter_config, is_adapter
from cfg_distill.merging import METHODS


def run(argv: Sequence[str]) -> None:
    about = "Merge model folders of one architecture, or LoRA adapters of one base: safetensors in, safetensors out."
    parser = Arguments("merge", about)
    parser.add_argument("--models", nargs="+", type=Path, required=True, metavar="DIR", help="the folders to merge")
    parser.add_argument(
        "--weights",
        nargs="*",
        type=float,
        default=[],
        metavar="W",
        help="one per model for lerp, slerp and weighted; one number for liti and ema; none for soup",
    )
    methods = "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
    parser.add_argument("--method", choices=METHODS, default="lerp", help=methods)
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="the model that all others were trained from; for adapters the base, unless an adapter is named",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that holds nothing but a model")
    given = parser.read(argv)
    from cfg_distill.merging import merge_folders

    with parser.naming_options():
        merge_folders(given.models, given.weights, given.method, given.out, given.start, given.overwrite)
    what = ""
    if is_adapter(given.out):
        config = adapter_config(given.out)
        what = f", an adapter of rank {config['r']} on {config['base_model_name_or_path']}; ranks add up"
    print(f"Wrote {given.out}: {given.method} of {', '.join(map(str, given.models))}{what}.")
