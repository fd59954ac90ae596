"""A point of the knob that no study merged: the two students of a study, and the weights for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.report.results import read_results
from cfg_distill.study.config import study_of
from cfg_distill.study.parts import Merge


class Line(NamedTuple):
    """The line between two models, as a study merges them."""

    models: list[str]
    method: str
    start: str | None


def line_of(study: str | Path) -> Line:
    """The two models that a study merges, its method, and the model that both were trained from where the method needs it.

    Args:
        study: the folder of the results, or the study file.

    Raises:
        ConfigError: there is no study in it, it merges no two models or several pairs of them, or they are not there.
    """
    results = read_results(study)
    content = results.study
    if not content:
        text = f"expected a study in `{results.folder}`, but it has none. Run `cfg-distill study` first."
        raise ConfigError(Problem("study", text))
    begun, _ = study_of(content)
    merges = [merge for merge in begun.merges.values() if merge.on_line]
    fits = tuple(begun.fits)
    pairs = {tuple(merge.models) for merge in merges} or ({fits} if len(fits) == 2 else set())
    if len(pairs) != 1:
        text = f"expected a study that merges two models, but `{results.folder}` merges {len(pairs) or 'no'} pairs."
        raise ConfigError(Problem("study", f"{text} Give the models as `@.models`."))
    (names,) = pairs
    first = merges[0] if merges else Merge(list(names))

    return Line([results.place_of(name) for name in names], first.method, results.place_of(first.start) or None)
