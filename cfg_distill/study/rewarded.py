"""Which measures the rewards of a study pay for. What a reward pays for is no independent measure of its students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cfg_distill.errors import Problem
from cfg_distill.recipe.files import class_name
from cfg_distill.study.config import Study
from cfg_distill.study.parts import Fit


def problems_of_independent(study: Study, fits: Mapping[str, Fit]) -> list[Problem]:
    """Why the independent measure of the headline is none.

    Args:
        study: the whole study.
        fits: those of its fits that can be read.
    """
    headline = study.evaluation.headline
    given = headline.independent
    if given is None:
        return []
    key = "evaluation.headline.independent"
    advice = "Name a measure of diversity that no reward pays for, or leave it out."
    if given == headline.diversity:
        return [Problem(key, f"expected another measure than the diversity, but got `{given}` for both. {advice}")]
    if study.claims is None:
        return []
    claimed = (study.claims.named.get("diversity"), study.claims.named.get("merge"))
    measured = set(_embedders(study.evaluation.metrics.get(given)))
    for name in dict.fromkeys(fit for system in claimed if system for fit in _fits_behind(study, system)):
        if name in fits and measured & set(_embedders(fits[name].recipe.at("model.losses"))):
            text = f"expected a measure that no reward pays for, but a reward of fits.{name} has the embedder of `{given}`."
            return [Problem(key, f"{text} {advice}")]
    return []


def _fits_behind(study: Study, name: str) -> list[str]:
    """The fits that a system comes from."""
    system = study.all_systems().get(name)
    left, found = [system.model if system else name], []
    while left:
        model = left.pop()
        if model in found:
            continue
        found.append(model)
        if model in study.fits:
            left.append(study.fits[model].start)
        elif model in study.merges:
            left += [*study.merges[model].models, study.merges[model].start]
    return [model for model in found if model in study.fits]


def _embedders(spec: Any) -> Iterator[tuple[str, str]]:
    """Class and path of each embedder in the settings of losses or metrics.

    As they are written, since a study is checked without torch: a default path is another one than the same path spelled out.
    """
    for key, value in spec.items() if isinstance(spec, dict) else enumerate(spec) if isinstance(spec, list) else ():
        if key == "embedder" and class_name(value):
            arguments = value.get("init_args") or {} if isinstance(value, dict) else {}
            yield class_name(value), str(arguments.get("path", ""))
        yield from _embedders(value)
