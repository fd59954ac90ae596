"""The steps of a study, and what each needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.collapse import PICTURE, has_curves
from cfg_distill.recipe import Recipe
from cfg_distill.study.climbing import ClimbLadder, ladder_of
from cfg_distill.study.config import Study
from cfg_distill.study.jobs import DrawFront, Evaluate, Export, Job, MergeFolders, TimeSampling
from cfg_distill.study.parts import LATER, NOT_IN_0_1, Fit, SystemConfig
from cfg_distill.study.record import digest, digests, own_code

StepKind = Literal["fit", "export", "merge", "evaluate", "ladder", "time", "front"]


@dataclass
class Step:
    """One piece of work.

    Attributes:
        kind: of work.
        subject: the fit, merge or system.
        work: the words of the command of a fit; the job of a worker for any other step.
        outputs: files and folders that the step makes; the step is done when they are there, as it left them.
        needs: labels of the steps before it.
        config: everything that decides its result, beside the outputs of the steps before it; hashed.
        effort: a guess of its seconds, for the time left until something was measured.
        traces: files and folders of an unfinished run, removed when the step cannot go on from them.
        after: labels of further steps that it waits for, although they decide nothing of its result.
        code: the user's own code that it runs: file -> digest, as it was when the study was planned.
    """

    kind: StepKind
    subject: str
    work: list[str] | Job
    outputs: list[Path]
    needs: list[str] = field(default_factory=list)
    config: Any = None
    effort: float = 1.0
    traces: list[Path] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    code: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.kind} {self.subject}".strip()


def plan(study: Study, out: Path) -> list[Step]:
    """All steps, each after what it needs. With several training seeds, every fit, merge and student is made once per seed."""
    steps: list[Step] = []
    made: dict[tuple[str, str], Made] = {}
    runs = runs_of(study)
    for run in runs:
        steps += _training_steps(study, run, out, made)
    evaluations: dict[str, list[Step]] = {}
    for name, system in study.all_systems().items():
        trained = any(map(study.chain, system.models))
        evaluations[name] = [
            _evaluation_step(study, name, run, [_made(each, run, made) for each in system.models], out)
            for run in (runs if trained else [Run()])
        ]
        steps += evaluations[name]
    ladder = _ladder_step(study, out)
    needed = [step.label for several in [*evaluations.values(), ladder] for step in several]
    timing = _timing_step(study, runs[0], made, needed, out)
    steps += [*ladder, *timing, _front_step(study, evaluations, ladder, timing, out)]
    for step in steps:
        step.code |= own_code(step.config)
    return steps


@dataclass(frozen=True)
class Run:
    """One run of all training.

    Attributes:
        seed: of training; None for the seeds of the recipes.
        word: ``seed 0`` where there are several runs, which names the folders of this one; else empty.
    """

    seed: int | None = None
    word: str = ""

    def subject(self, name: str) -> str:
        """The subject of a step: ``quality``, or ``quality seed 0``."""
        return f"{name} {self.word}".strip()

    def within(self, folder: Path) -> Path:
        """A folder, or the one of this run in it: ``students/quality``, or ``students/quality/seed 0``."""
        return folder / self.word if self.word else folder


@dataclass(frozen=True)
class Made:
    """A model that a system samples, a fit starts from or a merge takes.

    Attributes:
        folder: of the model, or its hub name.
        label: of the step that makes it; empty for a model that is there before the study.
    """

    folder: str
    label: str = ""

    @property
    def needs(self) -> list[str]:
        return [self.label] if self.label else []


def _made(model: str, run: Run, made: dict[tuple[str, str], Made]) -> Made:
    """A model as it was made in a run; in the first where it is the same in all; else one that is there already."""
    return made.get((model, run.word), made.get((model, ""), Made(model)))


def _sampled(system: SystemConfig, models: list[Made]) -> SystemConfig:
    """A system with the folders of its models."""
    anneal = system.anneal and replace(system.anneal, base=models[-1].folder)
    return replace(system, model=models[0].folder, anneal=anneal)


def runs_of(study: Study) -> list[Run]:
    """One run per training seed."""
    if study.replicated:
        return [Run(seed, f"seed {seed}") for seed in study.training_seeds]
    return [Run(study.training_seeds[0] if study.training_seeds else None)]


def folder_of(study: Study, name: str, run: Run, out: Path) -> Path:
    """Where the student of a fit, or a merge, is put in a run; a merge that is the same in all runs has one folder."""
    return (run if study.chain(name) else Run()).within(out / ("students" if name in study.fits else "merges") / name)


def _training_steps(study: Study, run: Run, out: Path, made: dict[tuple[str, str], Made]) -> list[Step]:
    """The fits, exports and merges of one run; what they make is noted in ``made``, by model and run.

    A merge of models that the study does not train is the same in every run: it is made in the first.
    """
    steps: list[Step] = []

    def use(model: str) -> Made:
        return _made(model, run, made)

    for name, fit in study.fits.items():
        folder = folder_of(study, name, run, out)
        steps.append(_fit_step(name, fit, run, use(fit.start), out))
        trusted = [fit.recipe.generator_class.rpartition(".")[0]]  # the module that the user's recipe names
        export = Export(str(run.within(out / "fits" / name)), str(folder), trusted)
        steps.append(Step("export", run.subject(name), export, [folder], [steps[-1].label], None, 2.0))
        steps[-1].code = own_code(fit.recipe.generator_class)
        made[name, run.word] = Made(str(folder), steps[-1].label)
    for name, merge in study.merges.items():
        own = run if study.chain(name) else Run()
        if (name, own.word) in made:
            continue
        folder = folder_of(study, name, own, out)
        used, start = [use(model) for model in merge.models], use(merge.start)
        job = MergeFolders([each.folder for each in used], merge.weights, merge.method, start.folder, str(folder))
        config = asdict(merge)
        config.pop("evaluate")  # it decides what is made of the merge, not the merge
        needs = sorted({need for each in (*used, start) for need in each.needs})
        # The folders of the other models are in `needs`.
        given = [model for model in (*merge.models, merge.start) if model not in (*study.fits, *study.merges)]
        steps.append(Step("merge", own.subject(name), job, [folder], needs, config | digests(given), 1.0))
        made[name, own.word] = Made(str(folder), steps[-1].label)
    return steps


def last_checkpoint(folder: Path) -> dict[str, str]:
    """The last checkpoint of a finished fit, and its digest.

    Raises:
        ConfigError: the fit wrote none.
    """
    found = sorted(folder.rglob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"Fit `{folder.name}`: expected a checkpoint `last.ckpt`, but it wrote none. Give its recipe a"
            " ModelCheckpoint with `save_last: true`."
        )
    return {"checkpoint": str(found[-1]), "digest": digest([found[-1]])}


def _fit_step(name: str, fit: Fit, run: Run, start: Made, out: Path) -> Step:
    recipe, folder = fit.recipe, run.within(out / "fits" / name)
    words = fit.words + ([f"--model.start={start.folder}"] if start.folder else [])
    seed = [] if run.seed is None else [f"--seed_everything={run.seed + fit.seed_offset}"]
    # The study's own additions: no baselines, since it measures its own, the folder of the run, and to go on from its last
    # checkpoint when there is one.
    words += [*seed, *(f"--{key}=false" for key in _measured_baselines(recipe))]
    words += [f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    config: dict[str, Any] = {
        "recipe": recipe.values,
        "start": fit.start,
        "files": digests([recipe.values, "" if start.needs else fit.start]),
    }
    if run.seed is not None:
        config["training_seed"] = run.seed + fit.seed_offset
    steps = min(max(recipe.max_steps, 1), 10**9)
    effort = steps * recipe.rows * recipe.max_new_tokens * 3e-4 + 15
    return Step("fit", run.subject(name), words, [folder / "done.json"], start.needs, config, effort, [folder])


def _measured_baselines(recipe: Recipe) -> list[str]:
    """The keys by which callbacks with a name measure base and guided base, as DiversityLogging does."""
    callbacks = recipe.at("trainer.callbacks")
    keys = [f"trainer.callbacks.{name}" for name in callbacks] if isinstance(callbacks, dict) else []
    return [f"{key}.init_args.baselines" for key in keys if recipe.at(f"{key}.baselines") is True]


def _evaluation_step(study: Study, name: str, run: Run, models: list[Made], out: Path) -> Step:
    """The evaluation of a system under one training seed, by its models as they were made under this seed."""
    given, system = study.evaluation, study.all_systems()[name]
    settled = study.settled(system)
    file, heard = out / "systems" / f"{name}.json", run.within(out / "samples" / name)
    if run.word:
        file = out / "systems" / name / f"{run.word}.json"
    chain = study.chain(system.model)
    # The filters of the evaluation stay in the evaluation, where jobs of version 0.1 had them.
    sampled = replace(_sampled(system, models), temperature=settled.temperature, dtype=settled.dtype)
    job = Evaluate(name, study.kind(name), sampled, given, str(file), str(heard), _seeds(study, chain, run), chain)
    settings = _deciding(study) | {"temperature": settled.temperature, "dtype": settled.dtype}
    point = _without_unset(system, NOT_IN_0_1)
    given_models = [each.folder for each in models if not each.needs]
    config = settings | {"point": point, "files": digests([settings, given_models])}
    cost = (2 if system.guidance != 1 else 1) * len(models)
    effort = 2e-4 * cost * given.samples * len(given.seeds) * given.max_new_tokens * 24 + 3
    needs = [need for each in models for need in each.needs]
    return Step("evaluate", run.subject(name), job, [file, heard], needs, config, effort, [heard])


def _deciding(study: Study) -> dict[str, Any]:
    """The settings of the evaluation that decide the values of a system."""
    settings = asdict(study.evaluation) | {"prompts": study.evaluation.sampled}
    # These decide what is shown and written, or which prompts are sampled.
    for key in ("headline", "timing", "ladder", "audio", "development", "stage"):
        settings.pop(key)
    if not settings["min_p"]:
        settings.pop("min_p")
    return settings


def _seeds(study: Study, chain: str, run: Run) -> list[int]:
    """The training seeds of a system: of the study, or of the recipe of the first fit of its chain."""
    if not chain:
        return []
    if run.seed is not None:
        return [run.seed]
    seed = study.fits[chain].recipe.values.get("seed_everything")
    return [seed] if isinstance(seed, int) and not isinstance(seed, bool) else []


def _ladder_step(study: Study, out: Path) -> list[Step]:
    """The scores of real and degenerate samples; none where the study has no ladder."""
    given, ladder = study.evaluation, ladder_of(study).name
    if not ladder:
        return []
    file = out / "ladder.json"
    config = {"ladder": ladder, "prompts": given.sampled, "field": given.field, "metrics": given.metrics}
    config |= {"files": digests([config])}
    return [Step("ladder", "", ClimbLadder(ladder, given, str(file)), [file], [], config, 30.0)]


def _timing_step(
    study: Study, run: Run, made: dict[tuple[str, str], Made], evaluations: list[str], out: Path
) -> list[Step]:
    """The measurement of seconds, after all evaluations, so that nothing else runs; none where no rows are asked for."""
    given, systems = study.evaluation, study.all_systems()
    if not given.timing:
        return []
    first: dict[str, str] = {}
    for name in systems:
        first.setdefault(study.kind(name), name)
    names = [first[kind] for kind in ("base", "guidance", "student") if kind in first]
    if study.claims is not None:
        names = [study.claims.start, study.claims.guidance, study.claims.quality]
    timed, needs = {}, set[str]()
    for name in names:
        models = [_made(each, run, made) for each in systems[name].models]
        timed[name] = _sampled(study.settled(systems[name]), models)
        needs |= {need for each in models for need in each.needs}
    file = out / "speed.json"
    config = _deciding(study) | {
        "timing": given.timing,
        "systems": {name: _without_unset(each, LATER) for name, each in timed.items()},
    }
    for key in ("metrics", "samples", "seeds", "batch_size", "written", "written_samples"):
        config.pop(key)
    job = TimeSampling(timed, given, str(file))
    return [Step("time", "", job, [file], sorted(needs), config, 6.0 * len(timed), after=evaluations)]


def _without_unset(system: SystemConfig, new: Collection[str]) -> dict[str, Any]:
    """A system without new keys that are not set: results from before there were these keys are not stale."""
    return {key: value for key, value in asdict(system).items() if key not in new or value is not None}


def _front_step(
    study: Study, evaluations: dict[str, list[Step]], ladder: list[Step], timing: list[Step], out: Path
) -> Step:
    given, claims = study.evaluation, study.claims
    knobs = [study.knob(name) for name in study.all_systems()]
    protocol = {"prompts": given.sampled, "stage": given.stage, "training_seeds": study.training_seeds}
    files = {name: [str(step.outputs[0]) for step in steps] for name, steps in evaluations.items()}
    timed, rungs = (str(steps[0].outputs[0]) if steps else "" for steps in (timing, ladder))
    job = DrawFront(files, given.headline, claims, knobs, str(out), protocol, timed, rungs)
    config = [asdict(given.headline), claims and asdict(claims), knobs, protocol]
    pooled = [out / "systems" / f"{name}.json" for name, steps in evaluations.items() if len(steps) > 1]
    needs = [step.label for steps in [*evaluations.values(), ladder, timing] for step in steps]
    return Step("front", "", job, [*front_outputs(out, given.metrics), *pooled], needs, config, 3.0)


def front_outputs(out: Path, metrics: Iterable[str]) -> list[Path]:
    """The files of the last step, by the names of the metrics."""
    drawn = [PICTURE] if has_curves(metrics) else []
    return [out / name for name in ("front.json", "front.png", "table.txt", *drawn)]
