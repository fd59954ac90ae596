"""What is wrong with a request to finished models, by the fields of the request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cfg_distill.errors import ConfigError, Context, Problem, PromptProblem, problems_of
from cfg_distill.files import problems_of_place
from cfg_distill.generators import Generator
from cfg_distill.sampling import Sampling


def at_key(key: str, found: Iterable[Problem]) -> list[Problem]:
    """Problems of one field, whatever part of it they name."""
    return [
        replace(each, key=key, prefix="") if isinstance(each, PromptProblem) else Problem(key, str(each))
        for each in found
    ]


def problems_of_model(generator: Generator, key: str) -> list[Problem]:
    """Problems of a model. Its path is the field ``key``; its dtype is the field of the same name."""
    try:
        found = problems_of(generator)
    except ConfigError as error:  # a tokenizer that cannot be read, for one
        found = error.problems
    return [replace(each, key=key, prefix="") if each.path in ("path", "") else each for each in found]


RESULT_FILES = (
    "front.json",
    "front.png",
    "collapse.png",
    "table.txt",
    "report.html",
    "report_files/*-[0-9]*-[0-9]*.*",
    "systems/*.json",
    "samples/*/[0-9]*-*-[0-9]*.*",
)
"""What an evaluation and its report write into their folder, as patterns of paths."""


def problems_of_folder_to_write(out: Path, overwrite: bool) -> list[Problem]:
    """Why samples may not be written into a folder: it holds files."""
    if found := problems_of_place(out):
        return found
    if out.exists() and not out.is_dir():
        return [Problem("out", f"expected a folder, but `{out}` is a file. Name another one.")]
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return []
    return [Problem("out", f"`{out}` exists. Name another one, or pass `@.overwrite`.")]


def remarks_on_scales(scales: Sequence[float]) -> list[Problem]:
    """A remark on a scale at which the prompt counts for nothing."""
    text = (
        "0 samples the negative branch alone, at two forward passes per token. For samples of the prompt without guidance, set"
        " 1."
    )
    return [Problem("guidance", text)] if 0 in scales else []


def problems_of_sampling(sampling: Sampling, longest: int | None) -> list[Problem]:
    """Problems of the sampling settings, whose keys are fields of the request."""
    if math.isfinite(sampling.temperature):
        return problems_of(sampling, Context(sampling.samples, longest))
    wrong = Problem(
        "temperature",
        f"expected a finite number of at least 0, but got {sampling.temperature}. Use 1 for the model's own.",
    )
    return [wrong, *problems_of_sampling(replace(sampling, temperature=1.0), longest)]
