"""mergekit: its ``linear`` beside our ``lerp``, and its ``nuslerp`` with a base beside our ``slerp``."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file

from serving.checks import Checks
from serving.environment import run
from serving.students import Students

ROUNDING = 1e-6
"""Between two merges of float32 weights."""


def recipe(method: str, models: list[Path], base: str, **settings: object) -> str:
    """mergekit's file for two models at equal weights; JSON is YAML."""
    parts = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    if method == "slerp":
        return json.dumps({"merge_method": method, "base_model": str(models[0]), "models": [{"model": str(m)} for m in models],
                           "parameters": {"t": 0.5}, "dtype": "float32"})  # fmt: skip
    started = {} if method == "linear" else {"base_model": base}
    return json.dumps({"merge_method": method, "models": parts, **started, "parameters": settings, "dtype": "float32"})


def apart(one: Path, other: Path) -> float:
    """The largest difference of two weights of the same name."""
    mine, its = (
        {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        for folder in (one, other)
    )
    common = mine.keys() & its.keys()  # a tied head is written by one of the two only
    if len(common) < min(len(mine), len(its)):
        return torch.inf
    return max(float((mine[name] - its[name].float()).abs().max()) for name in common)


def check(students: Students, checks: Checks) -> None:
    """Every check of this engine."""
    print(f"\nmergekit {version('mergekit')}")
    models = [students.whole(name) for name in ("quality", "diversity")]
    place = students.folder / "merges"
    place.mkdir(exist_ok=True)
    commands = students.environment.python.parent
    for method, more in (("lerp", []), ("slerp", ["--start", students.base])):
        words = ["--method", method, "--models", *models, "--weights", "0.5", "0.5", *more, "--out", place / method]
        run([commands / "cfg-distill", "merge", *words])
    for method, settings in (("linear", {}), ("nuslerp", {"nuslerp_flatten": True}), ("slerp", {})):
        file = place / f"{method}.yaml"
        file.write_text(recipe(method, models, students.base, **settings))
        run([commands / "mergekit-yaml", file, place / f"mergekit-{method}"])
    off = apart(place / "lerp", place / "mergekit-linear")
    checks(off < ROUNDING, "its linear is our lerp", f"{off:.1e} apart at most")
    off = apart(place / "slerp", place / "mergekit-nuslerp")
    checks(off < ROUNDING, "its nuslerp with a base_model, nuslerp_flatten: true, is our slerp --start", f"{off:.1e}")
    off = apart(place / "slerp", place / "mergekit-slerp")
    checks(off > 100 * ROUNDING, "trap: its slerp is another method", f"{off:.1e} apart")
