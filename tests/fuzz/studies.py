"""Broken studies. The steps of a study are not run: one whose checks find nothing counts as accepted."""

from __future__ import annotations

import random
from typing import Any

from fuzz.case import Case
from fuzz.recipes import NEVER, SOMETIMES, _bomb
from fuzz.world import World, changed, dumped, is_numeric, keys, leaves, without

SEED = 1203
NONSENSE: dict[str, list[Any]] = {
    "temperature": [-1, float("nan"), float("inf")],
    "guidance": [-1, float("inf")],
    "top_p": [0, -1, 5, float("nan")],
    "top_k": [-3],
    "min_p": [-1, 2],
    "samples": [1, 0, -1],
    "seeds": [[], [0, 0], [2**60]],
    "max_new_tokens": [0, -1, 10**9],
    "batch_size": [0],
    "written": [-1],
    "timing": [[0], [-1]],
    "margin": [0, -1, float("inf"), float("nan")],
    "weights": [[0.5], [float("nan"), 0.5], [], [float("inf"), 1]],
    "training_seeds": [[1, 1], [-1], [2**40]],
    "parallel": [-1],
}
NAMES = (
    "../../x", "/abs", "a/b", "..", "a\nb", "a\0b", "-rf", "~", ".", "", "x" * 300, "CON ", "a:b", "<script>alert(1)</script>",
    "a\\b", ".hidden", "ä", "a" * 101,
)  # fmt: skip


def cases(world: World, number: int) -> list[Case]:
    draw, study = random.Random(SEED), world.study
    # Training seeds would not reach a recipe that has seeds of its own.
    fit = dumped(without(without(world.recipe, ("model", "seed")), ("data", "seed")))
    certain: list[Case] = []
    made: list[Case] = []

    def add(kept: list[Case], name: str, content: Any, expect: Any = "refused", named: tuple[str, ...] = ()) -> None:
        text = content if isinstance(content, str | bytes) else dumped(content)
        files: dict[str, str | bytes] = {"study.yaml": text, "fit.yaml": fit}
        kept.append(Case("studies", name, ("study", "study.yaml"), files, expect=expect, named=named))

    add(certain, "whole", study, "legal")
    add(certain, "claims: null", changed(study, ("claims",), None), "legal")
    for path, value in leaves(study):
        for wrong in NONSENSE.get(str(path[-1]), ()) if is_numeric(value) else ():
            name = f"{'.'.join(map(str, path))}: {wrong!r}"
            add(certain, name, changed(study, path, wrong), named=(str(path[-1]), str(path[0])))
    text = dumped(study)
    for name, broken in {
        "empty": "",
        "a list": "- a\n",
        "a tab": "out:\tx\n\ty: 1\n",
        "aliases": text + _bomb(9),
        "an alias of itself": text + "x: &x [*x]\n",
        "a key twice": text + "out: other\n",
        "a python tag": "out: !!python/object/apply:os.system ['touch PWNED']\n",
        "deep": "out: " + "[" * 3000 + "]" * 3000,
        "latin-1": b"out: caf\xe9\n",
        "a newer version": text + "version: 99\n",
    }.items():
        add(certain, name, broken, named=("study.yaml",))
    for name in NAMES:
        for group, value in (("fits", study["fits"]["quality"]), ("baselines", study["baselines"]["base"])):
            add(
                certain,
                f"{group} named {name[:20]!r}",
                changed(study, (group, name), value),
                named=(group, "study.yaml"),
            )
    for key, value in {
        ("fits", "diversity", "start"): "nobody",
        ("fits", "quality", "config"): "missing.yaml",
        ("merges", "half", "models"): ["quality", "qualty"],
        ("merges", "half", "method"): "magic",
        ("baselines", "base", "model"): "/nowhere/model",
        ("evaluation", "prompts"): world.at("train.txt"),
        ("evaluation", "development"): "missing.txt",
        ("evaluation", "headline", "quality"): "nothing",
        ("evaluation", "headline", "diversity"): "length",
        ("evaluation", "stage"): "final",
        ("evaluation", "metrics", "quality", "class_path"): "os.system",
        ("evaluation", "metrics", "distinct", "init_args"): {"n": "x"},
        ("evaluation", "metrics", "quality", "init_args", "clip"): float("nan"),
        ("claims", "guards", "length"): "about 3",
        ("claims", "quality"): "nobody",
        ("fits", "quality", "overrides", "trainer.callbacks"): [],
        ("fits", "quality", "overrides", "trainer.max_steps"): float("nan"),
        ("fits", "quality", "overrides", "model.losses.kl.init_args.weight"): float("nan"),
        ("fits", "quality", "overrides", "model.guidance.scal"): 2,
        ("fits", "quality", "overrides"): {"": 1},
        ("out",): "/proc/out",
    }.items():
        add(certain, f"{'.'.join(key)}: {str(value)[:40]}", changed(study, key, value))
    for path, value in leaves(study):
        if is_numeric(value) and path[-1] != "class_path":
            for what, wrong in NEVER:
                # A scale, a temperature or a seed may be given as a list in a sweep.
                add(
                    made,
                    f"{'.'.join(map(str, path))}: {what}",
                    changed(study, path, wrong),
                    named=(str(path[-1]), str(path[0])),
                )
            for what, wrong in SOMETIMES:
                add(made, f"{'.'.join(map(str, path))}: {what}", changed(study, path, wrong), "either")
    for path in keys(study):
        add(made, f"{'.'.join(map(str, path))}: missing", without(study, path), "either")
        add(
            made,
            f"{'.'.join(map(str, path))}: a bare list",
            changed(study, path, ["x", {"y": 1}]),
            named=(str(path[0]),),
        )
    draw.shuffle(made)
    return [*certain, *made][:number]
