"""``cfg-distill export``: the student of a Lightning checkpoint as a plain Hugging Face folder, or as an adapter folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, refuse_existing
from cfg_distill.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    parser = Arguments("export", "Write the student of a checkpoint as a folder that transformers alone loads.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="written by cfg-distill fit")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    kinds = "the live weights, or the averages of StudentEMA; default: the averages when the checkpoint holds them"
    parser.add_argument("--weights", choices=("raw", "ema"), help=kinds)
    parser.add_argument(
        "--merged", action="store_true", help="a LoRA student as a whole model, without its adapter apart"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
    given = parser.read(argv)
    found = _problems_of_checkpoint(given.checkpoint) + refuse_existing(given.out, given.overwrite, model=True)
    if found:
        raise ConfigError(found)
    from cfg_distill.checkpoints import export

    print(export(given.checkpoint, given.out, given.weights, given.merged))


def _problems_of_checkpoint(file: Path) -> list[str]:
    if not file.exists():
        return [f"Option `--checkpoint`: expected a file written by cfg-distill fit, but `{file}` does not exist."]
    if file.is_dir():
        return [
            f"Option `--checkpoint`: expected one file, but `{file}` is a folder (a sharded checkpoint). Make one file"
            f" of it: python -m lightning.pytorch.utilities.consolidate_checkpoint {file}"
        ]
    return []
