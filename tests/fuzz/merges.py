"""Broken merges."""

from __future__ import annotations

import random
from typing import Any

from fuzz.case import Case, Expect
from fuzz.folders import BROKEN, copied
from fuzz.world import World

SEED = 1208
HEALED = {"whole", "no tokenizer", "an empty tokenizer", "code"}


def cases(world: World, number: int) -> list[Case]:
    draw = random.Random(SEED)
    made: list[Case] = []
    one, other = world.at("model"), world.at("other")

    def add(name: str, words: tuple[str, ...], expect: Expect = "refused", make: Any = None) -> None:
        made.append(Case("merges", name, ("merge", "--out", "out", *words), {}, make, expect))

    pair = ("--models", one, other)
    for weights in (("0.5", "0.5"), ("0", "1"), ("1e-3", "0.999")):
        add(f"weights {' '.join(weights)}", (*pair, "--weights", *weights), "legal")
    for weights in (
        (), ("0.5",), ("1", "2"), ("-1", "2"), ("nan", "0.5"), ("inf", "0.5"), ("x", "y"), ("0.5", "0.5", "0.5"), ("0", "0"),
        ("1e400", "0"), ("0.5", "-0.5"),
    ):  # fmt: skip
        add(f"weights {' '.join(weights)}", (*pair, "--weights", *weights))
    for method, weights in {
        "soup": ("0.5",),
        "liti": ("0.5",),
        "slerp": ("2", "3"),
        "ema": ("1.5",),
        "magic": ("0.5", "0.5"),
    }.items():
        add(f"{method} of {' '.join(weights)}", (*pair, "--method", method, "--weights", *weights))
    add("soup", (*pair, "--method", "soup"), "legal")
    add("liti beyond 1", ("--models", one, "--start", other, "--method", "liti", "--weights", "nan"))
    add("no models", ())
    add("one model", ("--models", one, "--weights", "1"))
    add("no such folder", ("--models", one, "/nowhere", "--weights", "0.5", "0.5"))
    add("a file", ("--models", one, world.at("train.txt"), "--weights", "0.5", "0.5"))
    add("tunes and tiny", ("--models", one, "tunes:base", "--weights", "0.5", "0.5"))
    add(
        "into itself",
        ("--models", one, "m", "--weights", "0.5", "0.5", "--out", "m", "--overwrite"),
        make=copied(world, _whole, "m"),
    )
    add("into its folder", ("--models", one, "p/m", "--weights", "0.5", "0.5", "--out", "p", "--overwrite"),
        make=copied(world, _whole, "p/m"))  # fmt: skip
    add(
        "onto a file",
        (*pair, "--weights", "0.5", "0.5", "--out", "m/config.json", "--overwrite"),
        make=copied(world, _whole, "m"),
    )
    add("onto my files", (*pair, "--weights", "0.5", "0.5", "--out", "m", "--overwrite"),
        make=copied(world, lambda model: (model / "thesis.tex").write_text("x") and None, "m"))  # fmt: skip
    add("onto a model, not allowed", (*pair, "--weights", "0.5", "0.5", "--out", "m"), make=copied(world, _whole, "m"))
    add("a name of 300 letters", (*pair, "--weights", "0.5", "0.5", "--out", "x" * 300))
    add("a study and models", (*pair, "--study", "s", "--knob", "0.5"))
    add("a knob without a study", ("--knob", "0.5"))
    add("a knob of 2", ("--study", "s", "--knob", "2"))
    add("a knob of nan", ("--study", "s", "--knob", "nan"))
    add("a study that is none", ("--study", one, "--knob", "0.5"))
    weights_alone = [
        each
        for each in BROKEN
        if not any(word in each[0] for word in ("template", "profile", "tokenizer", "generation"))
    ]
    for name, break_, expect in draw.sample(weights_alone, len(weights_alone)):
        # A merge compares configs and tensors; it builds no model, and cannot know what a config means.
        sure = any(
            word in name
            for word in ("tensor", "NaN", "infinity", "half", "header", "shard", "no weights", "shape", "integers")
        )
        for place, models in (("first", ("broken", other)), ("second", (other, "broken"))):
            legal: Expect = (
                "legal" if name in ("whole", "shards") else "refused" if sure and expect == "refused" else "either"
            )
            add(
                f"{place}: {name}",
                ("--models", *models, "--weights", "0.5", "0.5"),
                legal,
                copied(world, break_, "broken"),
            )
    return made[:number]


def _whole(model: Any) -> None:
    return None
