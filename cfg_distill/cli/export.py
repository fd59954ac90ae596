"""``cfg-distill export``: the student of a Lightning checkpoint as a plain Hugging Face folder, or as an adapter folder."""

from __future__ import annotations

from collections.abc import Sequence

from cfg_distill.cli.arguments import Arguments, place


def run(argv: Sequence[str]) -> None:
    parser = Arguments("export", "Write the student of a checkpoint as a folder that transformers alone loads.")
    parser.add_argument("--checkpoint", type=place, required=True, metavar="FILE", help="written by cfg-distill fit")
    parser.add_argument("--out", type=place, required=True, metavar="DIR", help="the folder to write")
    kinds = "the live weights, or the averages of StudentEMA; default: the averages when the checkpoint holds them"
    parser.add_argument("--weights", choices=("raw", "ema"), help=kinds)
    parser.add_argument(
        "--merged", action="store_true", help="a LoRA student as a whole model, without its adapter apart"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that holds nothing but a model")
    modules = "modules of your own that the checkpoint may name: its generator is made by running them"
    parser.add_argument("--trust", nargs="+", default=[], metavar="MODULE", help=modules)
    relative = "an adapter folder of the same base: write the difference to it, as one adapter"
    parser.add_argument("--relative-to", default="", metavar="DIR", help=relative)
    gguf = (
        "also convert the folder for llama.cpp, by its converter (in the folder that LLAMA_CPP names, or on the PATH)"
    )
    parser.add_argument("--gguf", action="store_true", help=gguf)
    push = "also push the folder to this repository on the hub, such as me/my-student; needs a token (hf auth login)"
    parser.add_argument("--push", default="", metavar="NAME", help=push)
    given = parser.read(argv)
    with parser.naming_options():
        from cfg_distill.checkpoints import export
        from cfg_distill.recipe.quiet import without_bars
        from cfg_distill.report.measured import tell_study

        without_bars()
        near = [given.checkpoint]
        print(export(**vars(given), finish=lambda folder, name: tell_study(folder, name, near)))
