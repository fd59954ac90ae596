"""One point of a front: a model, how it was sampled, and its metrics per prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from cfg_distill.evaluation.front import bootstrap_interval
from cfg_distill.evaluation.intervals import Interval
from cfg_distill.files import write_text

Kind = Literal["base", "guidance", "student", "merge", "model", "real", "degenerate"]


@dataclass
class System:
    """A model and how it was sampled, with its metrics per prompt.

    Attributes:
        name: as the study names it.
        kind: ``base`` (without guidance), ``guidance``, ``student``, ``merge``, or ``model`` for any other system. ``real`` and
            ``degenerate`` are rows of a ladder: samples that no system drew, which show where a metric's scale ends.
        model: the folder or hub name.
        temperature: of sampling.
        guidance: the scale of guidance, the largest where it moved; 1 is none.
        samples: samples per prompt and seed.
        seeds: of sampling.
        prompts: the prompts, in the order of the values.
        axes: metric -> ``quality``, ``diversity`` or ``guard``.
        values: metric -> one row per sampling seed, one number per prompt; NaN where the metric does not apply. With several
            training seeds: metric -> such a table per training seed. :meth:`runs` has one shape for both.
        relative_cost: forward passes per token, relative to sampling without guidance.
        knob: the weight of the second student in a merge of two, from 0 to 1; None for any other system.
        training_seeds: of a system that the study trained, or merged of what it trained; empty for any other system.
        chain: the chain of fits that a trained system comes from. Systems of one chain share each training seed. Empty for a
            system that was not trained.
        seconds: per sample, measured while sampling, without the metrics; None where it was not measured.
        top_k: of sampling; 0 keeps all.
        top_p: of sampling; 1 keeps all.
        min_p: of sampling; 0 keeps all.
        prompt: the template that the prompts were put into; None for the prompts as they are.
        anneal: the fields of :class:`~cfg_distill.evaluation.anneal.Anneal` where samples began by a start model; else None.
        conditioner: class_path and init_args of what gave each sample a label; None for none.
        dial: what the change of an adapter was multiplied by; None for all of it, and for a whole model.
        schedule: the fields of :class:`cfg_distill.guidance.Schedule` where gamma moved over the positions; else None, and
            ``guidance`` held at all of them.
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
    values: dict[str, list[Any]] = field(default_factory=dict)
    relative_cost: float = 1.0
    knob: float | None = None
    training_seeds: list[int] = field(default_factory=list)
    chain: str = ""
    seconds: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    prompt: str | None = None
    anneal: dict[str, Any] | None = None
    conditioner: dict[str, Any] | None = None
    dial: float | None = None
    schedule: dict[str, Any] | None = None

    def runs(self, metric: str) -> np.ndarray:
        """The values by training seed, prompt and sampling seed, ``[R, P, S]``; R is 1 for a system that was not trained."""
        values = np.asarray(self.values[metric], dtype=float)
        return (values[None] if values.ndim == 2 else values).swapaxes(1, 2)

    def cells(self, metric: str) -> np.ndarray:
        """The values by prompt and seed, ``[P, R * S]``: of all training seeds, and all sampling seeds of each."""
        return np.concatenate(self.runs(metric), axis=1)

    def interval(self, metric: str) -> Interval:
        """Mean over prompts, sampling seeds and training seeds, and its 95 % interval."""
        return bootstrap_interval(self.runs(metric))

    def on(self, axis: str) -> list[str]:
        """The metrics of one axis."""
        return [metric for metric, its_axis in self.axes.items() if its_axis == axis]

    def holes(self) -> dict[str, list[str]]:
        """Metric -> the prompts on which it is NaN under some seed; the metrics that are NaN nowhere are left out."""
        found = {}
        for metric in self.axes:
            is_lost_P = np.isnan(self.cells(metric)).any(axis=1)
            if is_lost_P.any():
                found[metric] = [prompt for prompt, is_lost in zip(self.prompts, is_lost_P, strict=True) if is_lost]
        return found

    def missing(self) -> dict[str, int]:
        """Metric -> the number of its :meth:`holes`."""
        return {metric: len(lost) for metric, lost in self.holes().items()}

    def point(self) -> dict[str, Any]:
        """The entry of front.json. A metric that is NaN everywhere has no interval: ``missing`` names it."""
        points: dict[str, Any] = {"name": self.name, "kind": self.kind}
        for axis, key in (("quality", "quality"), ("diversity", "diversity"), ("guard", "guards")):
            points[key] = {}
            for metric in self.on(axis):
                if not np.isnan(self.cells(metric)).all():
                    points[key][metric] = self.interval(metric)._asdict()
        return points | {
            "relative_cost": self.relative_cost,
            "seconds": self.seconds,
            "samples": self.samples,
            "seeds": self.seeds,
            "training_seeds": self.training_seeds,
            "prompts": len(self.prompts),
            "missing": self.missing(),
            "temperature": self.temperature,
            "guidance": self.guidance,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "prompt": self.prompt,
            "anneal": self.anneal,
            "conditioner": self.conditioner,
            "dial": self.dial,
            "schedule": self.schedule,
            "model": self.model,
            "knob": self.knob,
        }

    def save(self, file: Path) -> None:
        """Write everything, the values per prompt included, as JSON."""
        write_text(file, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        """Load a system that :meth:`save` wrote, now or in version 0.1, which had no training seeds."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


def read_rows(file: Path) -> list[System]:
    """The rows of real and degenerate samples that a study wrote."""
    return [System(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def pooled(name: str, runs: Sequence[System]) -> System:
    """One system of several training runs of it.

    Args:
        name: of the system.
        runs: the same system under each training seed, on the same prompts.

    Returns:
        A system whose values have the training seed as their first dimension. Its model is that of the first run.
    """
    first = runs[0]
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return replace(
        first,
        name=name,
        training_seeds=[seed for run in runs for seed in run.training_seeds],
        values={metric: [run.values[metric] for run in runs] for metric in first.values},
        seconds=sum(seconds) / len(seconds) if seconds else None,
    )
