"""One point of a front: a model, how it was sampled, and its metrics per prompt."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from cfg_distill.evaluation.front import Interval, bootstrap_interval
from cfg_distill.files import write_text

Kind = Literal["base", "guidance", "student", "merge", "model"]


@dataclass
class System:
    """A model and how it was sampled, with its metrics per prompt.

    Attributes:
        name: as the study names it.
        kind: ``base`` (at some temperature), ``guidance``, ``student``, ``merge``, or ``model`` for any other system.
        model: the folder or hub name.
        temperature: of sampling.
        guidance: the scale of guidance; 1 is none.
        samples: samples per prompt and seed.
        seeds: of sampling.
        prompts: the prompts, in the order of the values.
        axes: metric -> ``quality``, ``diversity`` or ``guard``.
        values: metric -> one row per seed, one number per prompt; NaN where the metric does not apply.
        relative_cost: forward passes per token, relative to sampling without guidance.
        knob: the weight of the second student in a merge of two, from 0 to 1; None for any other system.
    """

    name: str
    kind: Kind
    model: str
    temperature: float
    guidance: float
    samples: int
    seeds: list[int]
    prompts: list[str]
    axes: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[list[float]]] = field(default_factory=dict)
    relative_cost: float = 1.0
    knob: float | None = None

    def cells(self, metric: str) -> np.ndarray:
        """The values by prompt and seed, ``[number of prompts, number of seeds]``."""
        return np.asarray(self.values[metric], dtype=float).T

    def interval(self, metric: str) -> Interval:
        """Mean over prompts and seeds, and its 95 % bootstrap interval."""
        return bootstrap_interval(self.cells(metric))

    def on(self, axis: str) -> list[str]:
        """The metrics of one axis."""
        return [metric for metric, its_axis in self.axes.items() if its_axis == axis]

    def point(self) -> dict[str, Any]:
        """The entry of front.json."""
        points: dict[str, Any] = {"name": self.name, "kind": self.kind}
        for axis, key in (("quality", "quality"), ("diversity", "diversity"), ("guard", "guards")):
            points[key] = {}
            for metric in self.on(axis):
                points[key][metric] = self.interval(metric)._asdict()
        return points | {
            "relative_cost": self.relative_cost,
            "samples": self.samples,
            "seeds": self.seeds,
            "prompts": len(self.prompts),
            "temperature": self.temperature,
            "guidance": self.guidance,
            "model": self.model,
            "knob": self.knob,
        }

    def save(self, file: Path) -> None:
        """Write everything, the values per prompt included, as JSON."""
        write_text(file, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        """Load a system that :meth:`save` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))
