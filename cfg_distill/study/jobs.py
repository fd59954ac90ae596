"""The jobs of a study's workers. A study makes them, without torch; a worker runs them, and only then imports it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.anneal import Anneal, GuidanceCourse, annealed
from cfg_distill.evaluation.headline import Headline
from cfg_distill.study.checking import CheckEvaluation, CheckFit, Report
from cfg_distill.study.climbing import ClimbLadder
from cfg_distill.study.parts import Claims, Evaluation, SystemConfig
from cfg_distill.study.sampled import generator_of, guidance_of, sampling_of

if TYPE_CHECKING:
    from cfg_distill.evaluation.system import Kind


class Job(Protocol):
    """A dataclass that says what a worker does."""

    def run(self, report: Report) -> dict[str, Any]:
        """Do it.

        Returns:
            Its answer to the study; empty for most jobs.
        """


@dataclass(frozen=True)
class FindAccelerator:
    """Report whether there is an accelerator."""

    def run(self, report: Report) -> dict[str, Any]:
        from cfg_distill.generators import device

        return {"accelerator": device().type != "cpu"}


@dataclass(frozen=True)
class Export:
    """Write the student of a finished fit as a plain folder: the averages of StudentEMA when it has them.

    Attributes:
        fit: the folder of the fit.
        out: the folder to write.
        trust: modules beside this package that the checkpoint may name: the one of the recipe's generator.
    """

    fit: str
    out: str
    trust: list[str] = field(default_factory=list)

    def run(self, report: Report) -> dict[str, Any]:
        from cfg_distill import checkpoints

        checkpoint = json.loads((Path(self.fit) / "done.json").read_text(encoding="utf-8"))["checkpoint"]
        if not Path(checkpoint).exists():
            raise ConfigError(
                f"Expected the checkpoint `{checkpoint}`, to make `{self.out}` of it, but it is gone. To train anew, run"
                " the study with `--remake fit`."
            )
        print(checkpoints.export(checkpoint, self.out, overwrite=True, trust=self.trust))
        return {}


@dataclass(frozen=True)
class MergeFolders:
    """Merge model folders.

    Attributes:
        models: the folders.
        weights: as the method asks.
        method: of merging.
        start: the folder that all others were trained from; empty for none.
        out: the folder to write.
    """

    models: list[str]
    weights: list[float]
    method: str
    start: str
    out: str

    def run(self, report: Report) -> dict[str, Any]:
        from cfg_distill.merging import merge_folders

        merge_folders(self.models, self.weights, self.method, self.out, start=self.start or None, overwrite=True)
        return {}


@dataclass(frozen=True)
class Evaluate:
    """Sample and score one system; write its values and some samples.

    Attributes:
        name: of the system.
        kind: of the system.
        system: the folder of its model and how it is sampled, temperature and dtype included.
        evaluation: how every system is sampled and scored.
        file: for the values.
        samples_folder: for the samples.
        training_seeds: of the model: one, or none where the study did not train it.
        chain: of training; empty where the study did not train it.
    """

    name: str
    kind: Kind
    system: SystemConfig
    evaluation: Evaluation
    file: str
    samples_folder: str
    training_seeds: list[int] = field(default_factory=list)
    chain: str = ""

    def run(self, report: Report) -> dict[str, Any]:
        from cfg_distill.data import read_prompts
        from cfg_distill.evaluation import evaluate
        from cfg_distill.evaluation.chosen import conditioner_of
        from cfg_distill.evaluation.written import Writer
        from cfg_distill.generators import device

        given = self.evaluation
        metrics = loaded_metrics(given.metrics)
        generator = generator_of(given, self.system).load().to(device())
        writer = Writer(generator, Path(self.samples_folder), given.written, given.written_samples, audio=given.audio)
        sampling = sampling_of(given, self.system)
        system = evaluate(
            annealed(generator, self.system.anneal, sampling.max_new_tokens),
            read_prompts(given.sampled, given.field),
            sampling,
            guidance_of(self.system, given.max_new_tokens),
            metrics,
            seeds=given.seeds,
            batch_size=given.batch_size,
            name=self.name,
            kind=self.kind,
            progress=report,
            listen=writer,
            template=self.system.prompt,
            conditioner=conditioner_of(self.system.conditioner, given.samples),
        )
        writer.finish()
        system.training_seeds, system.chain = self.training_seeds, self.chain
        system.anneal = None if self.system.anneal is None else asdict(self.system.anneal)
        system.conditioner = self.system.conditioner
        system.save(Path(self.file))
        return {}


@dataclass(frozen=True)
class TimeSampling:
    """Measure the seconds per sample of some systems, one after the other, while nothing else of the study runs.

    Attributes:
        systems: name -> the folder of its model and how it is sampled.
        evaluation: its prompts, the length of samples and the rows.
        file: for the measurements.
    """

    systems: dict[str, SystemConfig]
    evaluation: Evaluation
    file: str

    def run(self, report: Report) -> dict[str, Any]:
        from cfg_distill.data import read_prompts
        from cfg_distill.evaluation.timing import seconds_per_sample
        from cfg_distill.files import write_text
        from cfg_distill.generators import device
        from cfg_distill.generators.guided import under

        given, found = self.evaluation, []
        prompts = read_prompts(given.sampled, given.field)
        for name, system in self.systems.items():
            generator = generator_of(given, system).load().to(device())
            guidance, sampling = guidance_of(system, given.max_new_tokens), sampling_of(given, system)
            predictor = annealed(generator, system.anneal, sampling.max_new_tokens)
            measured = seconds_per_sample(predictor, prompts, sampling, guidance, given.timing)
            passes = float(under(predictor, guidance).passes)
            found += [{"system": name, "relative_cost": passes} | each for each in measured]
        write_text(Path(self.file), json.dumps(found, indent=1) + "\n")
        return {}


@dataclass(frozen=True)
class DrawFront:
    """Write front.json, front.png and table.txt from the values of all systems.

    Attributes:
        systems: name -> the files of its values, one per training seed. Several are pooled into OUT/systems/NAME.json.
        headline: the metrics of the picture and the claims.
        claims: what the study sets out to show; None for no claims.
        knobs: where each system lies on the line of merges; None for one that does not.
        out: the folder to write into.
        protocol: the entry ``protocol`` of front.json: what was sampled.
        timing: the file of the measured seconds; empty for none.
        ladder: the file of the rows of real and degenerate samples; empty for none.
    """

    systems: dict[str, list[str]]
    headline: Headline
    claims: Claims | None
    knobs: list[float | None]
    out: str
    protocol: dict[str, Any] = field(default_factory=dict)
    timing: str = ""
    ladder: str = ""

    def run(self, report: Report) -> dict[str, Any]:
        from cfg_distill.evaluation.models import write_front
        from cfg_distill.evaluation.system import read_rows
        from cfg_distill.study.claims import finding, judge
        from cfg_distill.study.fronts import further_entries, lines_of

        systems = self._read()
        for system, knob in zip(systems, self.knobs, strict=True):
            system.knob = knob
        by_name = {system.name: system for system in systems}
        judged, title = [], ""
        if self.claims is not None:
            judged = judge(by_name, self.claims, self.headline)
            title = finding(by_name, self.claims, self.headline)
        timing = json.loads(Path(self.timing).read_text(encoding="utf-8")) if self.timing else []
        temperature = None if self.claims is None else by_name[self.claims.shown].temperature
        more = further_entries(systems, self.headline, temperature, self.protocol, timing)
        systems += read_rows(Path(self.ladder)) if self.ladder else []
        write_front(Path(self.out), systems, self.headline, judged, title, more=more, lines=lines_of(more))
        return {}

    def _read(self) -> list[Any]:
        """The systems, those of several training seeds as one."""
        from cfg_distill.evaluation import System
        from cfg_distill.evaluation.system import pooled

        systems = []
        for name, files in self.systems.items():
            runs = [System.read(Path(file)) for file in files]
            systems.append(runs[0] if len(runs) == 1 else pooled(name, runs))
            if len(runs) > 1:
                systems[-1].save(Path(self.out) / "systems" / f"{name}.json")
        return systems


_kept: dict[str, Any] = {}
"""The metrics, for the next job of this worker: loading them takes longer than many a job."""


def loaded_metrics(specs: dict[str, Any]) -> dict[str, Any]:
    """Metrics, kept for the next job."""
    from cfg_distill.evaluation.chosen import metrics_of
    from cfg_distill.generators import device

    text = json.dumps(specs, sort_keys=True)
    if _kept.get("specs") != text:
        # Moved before it is loaded: loading may embed a folder of sound, on the metric's device.
        loaded = {name: metric.to(device()).load() for name, metric in metrics_of(specs).items()}
        _kept.update(specs=text, metrics=loaded)
    return _kept["metrics"]


_TAG = "cfg_distill.study dataclass"
"""The key that marks a dataclass, which a mapping of the user never has."""
_JOBS = (
    CheckEvaluation,
    CheckFit,
    FindAccelerator,
    Export,
    MergeFolders,
    Evaluate,
    ClimbLadder,
    TimeSampling,
    DrawFront,
)
_PARTS = (Anneal, GuidanceCourse, Evaluation, Headline, Claims, SystemConfig)
_CLASSES: dict[str, Any] = {kind.__name__: kind for kind in (*_JOBS, *_PARTS)}


def encoded(job: Job) -> str:
    """A job as a line of JSON: each dataclass is a mapping with the name of its class.

    Example:
        >>> encoded(Export("fits/a", "students/a"))
        '{"cfg_distill.study dataclass": "Export", "fit": "fits/a", "out": "students/a", "trust": []}'
        >>> decoded(encoded(Export("fits/a", "students/a")))
        Export(fit='fits/a', out='students/a', trust=[])
    """
    return json.dumps(job, default=_as_mapping)


def decoded(line: str) -> Job:
    """The job that :func:`encoded` wrote."""
    return json.loads(line, object_hook=_as_dataclass)


def _as_mapping(value: Any) -> dict[str, Any]:
    assert is_dataclass(value), value
    return {_TAG: type(value).__name__} | {each.name: vars(value)[each.name] for each in fields(value)}


def _as_dataclass(content: dict[str, Any]) -> Any:
    name = content.pop(_TAG, None)
    return content if name is None else _CLASSES[name](**content)
