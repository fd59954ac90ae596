"""The steps of a study, and what each needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cfg_distill.errors import ConfigError
from cfg_distill.study.check import command_of, generator_modules
from cfg_distill.study.config import Fit, Study, SystemConfig
from cfg_distill.study.jobs import DrawFront, Evaluate, Export, Job, MergeFolders
from cfg_distill.study.record import digest, digests

StepKind = Literal["fit", "export", "merge", "evaluate", "front"]


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
    """

    kind: StepKind
    subject: str
    work: list[str] | Job
    outputs: list[Path]
    needs: list[str] = field(default_factory=list)
    config: Any = None
    effort: float = 1.0
    traces: list[Path] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.kind} {self.subject}".strip()


def plan(study: Study, out: Path) -> list[Step]:
    """All steps, each after what it needs."""
    made: dict[str, tuple[str, str]] = {}  # fit or merge -> the step that makes its folder, and the folder
    steps: list[Step] = []

    def use(model: str) -> tuple[list[str], str]:
        """The needs and the folder of a model."""
        return ([made[model][0]], made[model][1]) if model in made else ([], model)

    for name, fit in study.fits.items():
        needs, start = use(fit.start)
        folder = out / "students" / name
        steps.append(_fit_step(name, fit, start, needs, out))
        export = Export(str(out / "fits" / name), str(folder), generator_modules(fit))
        steps.append(Step("export", name, export, [folder], [f"fit {name}"], None, 2.0))
        made[name] = (f"export {name}", str(folder))
    for name, merge in study.merges.items():
        folder = out / "merges" / name
        used = [use(model) for model in merge.models]
        start_needs, start = use(merge.start)
        job = MergeFolders([path for _, path in used], merge.weights, merge.method, start, str(folder))
        needs = sorted({need for found, _ in used for need in found} | set(start_needs))
        given = [model for model in (*merge.models, merge.start) if model not in made]  # the others are in `needs`
        steps.append(Step("merge", name, job, [folder], needs, asdict(merge) | digests(given), 1.0))
        made[name] = (f"merge {name}", str(folder))
    for name, system in study.all_systems().items():
        steps.append(_evaluation_step(study, name, system, *use(system.model), out))
    return [*steps, _front_step(study, [step for step in steps if step.kind == "evaluate"], out)]


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


def _fit_step(name: str, fit: Fit, start: str, needs: list[str], out: Path) -> Step:
    recipe, folder = fit.recipe, out / "fits" / name
    words = command_of(fit) + ([f"--model.start={start}"] if start else [])
    # The study's own additions: the folder of the run, and to go on from its last checkpoint when there is one.
    words += [f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    config = {
        "recipe": recipe.values,
        "start": fit.start,
        "files": digests([recipe.values, "" if needs else fit.start]),
    }
    steps = min(max(recipe.max_steps, 1), 10**9)
    effort = steps * recipe.rows * recipe.max_new_tokens * 3e-4 + 15
    return Step("fit", name, words, [folder / "done.json"], needs, config, effort, [folder])


def _evaluation_step(study: Study, name: str, system: SystemConfig, needs: list[str], folder: str, out: Path) -> Step:
    given = study.evaluation
    temperature = given.temperature if system.temperature is None else system.temperature
    dtype = given.dtype if system.dtype is None else system.dtype
    file, heard = out / "systems" / f"{name}.json", out / "samples" / name
    sampled = replace(system, model=folder, temperature=temperature, dtype=dtype)
    job = Evaluate(name, study.kind(name), sampled, given, str(file), str(heard))
    settings = asdict(given) | {"temperature": temperature, "dtype": dtype}
    settings.pop("headline")  # decides what is shown, not what is measured
    config = settings | {"point": asdict(system), "files": digests([settings, folder if not needs else ""])}
    cost = 2 if system.guidance != 1 else 1
    effort = 2e-4 * cost * given.samples * len(given.seeds) * given.max_new_tokens * 24 + 3
    return Step("evaluate", name, job, [file, heard], needs, config, effort, [heard])


def _front_step(study: Study, evaluations: list[Step], out: Path) -> Step:
    headline, claims = study.evaluation.headline, study.claims
    knobs = [study.knob(name) for name in study.all_systems()]
    job = DrawFront([str(step.outputs[0]) for step in evaluations], headline, claims, knobs, str(out))
    config = [asdict(headline), claims and asdict(claims), knobs]
    outputs = [out / "front.json", out / "front.png", out / "table.txt"]
    return Step("front", "", job, outputs, [step.label for step in evaluations], config, 3.0)
