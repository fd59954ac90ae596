"""The points of ``cfg-distill evaluate``: which models, each at which settings. No torch in here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from cfg_distill.folders import expanded, is_adapter

_GUIDED = re.compile(r"(.+)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Point:
    """One model and how it is sampled.

    Attributes:
        model: a folder or hub name.
        temperature: of sampling.
        guidance: its scale; 1 is none.
        dial: what the change of an adapter is multiplied by; None for all of it, and for a whole model.
    """

    model: str
    temperature: float
    guidance: float
    dial: float | None


def model_and_guidance(word: str) -> tuple[str, float | None]:
    """A model as a user names it, without the guidance scale that the name may end with. A folder of that name stays whole.

    Example:
        >>> model_and_guidance("tunes:base@2"), model_and_guidance("students/quality")
        (('tunes:base', 2.0), ('students/quality', None))
    """
    match = _GUIDED.fullmatch(word)
    if match is None or expanded(word).exists():
        return word, None
    return match[1], float(match[2])


def points_of(
    models: Sequence[str], temperatures: Sequence[float], scales: Sequence[float], dials: Sequence[float] = ()
) -> list[Point]:
    """Each model at each setting of the dial, where it is an adapter, each temperature and each guidance scale; each once.

    Args:
        models: as a user names them: ``tunes:base@2`` has the one scale 2.
        temperatures: of sampling.
        scales: of guidance, for models without one of their own.
        dials: settings of the dial; none for adapters as they are.
    """
    found = []
    for word in models:
        model, own = model_and_guidance(word)
        settings: Sequence[float | None] = dials if dials and is_adapter(model) else [None]
        found += [
            Point(model, temperature, scale, dial)
            for dial, temperature, scale in product(settings, temperatures, scales if own is None else [own])
        ]
    return list(dict.fromkeys(found))
