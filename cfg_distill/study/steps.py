"""The steps of a study, what each needs, and when one may be skipped."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import cfg_distill
from cfg_distill.errors import ConfigError
from cfg_distill.files import write_text
from cfg_distill.study.check import command_of, generator_modules, recipe_of
from cfg_distill.study.config import Fit, Point, Study
from cfg_distill.study.record import digest, digests, source_digest

Kind = Literal["fit", "export", "merge", "evaluate", "front"]


@dataclass
class Step:
    """One piece of work.

    Attributes:
        kind: of work.
        subject: the fit, merge or system.
        job: for ``fit`` the words of the command; for others what :mod:`cfg_distill.study.worker` reads.
        outputs: files and folders it makes; it is done when they are there, as it left them.
        needs: labels of the steps before it.
        config: what decides its result beside the outputs of the steps before it; hashed.
        effort: a guess of its seconds, for the time left until something was measured.
        traces: what an unfinished run leaves, removed when it cannot go on from there.
    """

    kind: Kind
    subject: str
    job: dict[str, Any]
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
        export = {"do": "export", "fit": str(out / "fits" / name), "out": str(folder), "trust": generator_modules(fit)}
        steps.append(Step("export", name, export, [folder], [f"fit {name}"], None, 2.0))
        made[name] = (f"export {name}", str(folder))
    for name, merge in study.merges.items():
        folder = out / "merges" / name
        used = [use(model) for model in merge.models]
        start_needs, start = use(merge.start)
        job = asdict(merge) | {"do": "merge", "models": [f for _, f in used], "start": start, "out": str(folder)}
        needs = sorted({need for found, _ in used for need in found} | set(start_needs))
        given = [model for model in (*merge.models, merge.start) if model not in made]  # the others are in `needs`
        steps.append(Step("merge", name, job, [folder], needs, asdict(merge) | digests(given), 1.0))
        made[name] = (f"merge {name}", str(folder))
    for name, point in study.points().items():
        steps.append(_evaluation_step(study, name, point, *use(point.model), out))
    evaluations = [step for step in steps if step.kind == "evaluate"]
    files = [str(step.outputs[0]) for step in evaluations]
    shown = [
        asdict(study.evaluation.headline),
        study.claims and asdict(study.claims),
        [study.knob(n) for n in study.points()],
    ]
    front = {
        "do": "front",
        "systems": files,
        "headline": shown[0],
        "claims": shown[1],
        "knobs": shown[2],
        "out": str(out),
    }
    outputs = [out / "front.json", out / "front.png", out / "table.txt"]
    steps.append(Step("front", "", front, outputs, [step.label for step in evaluations], shown, 3.0))
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


def _fit_step(name: str, fit: Fit, start: str, needs: list[str], out: Path) -> Step:
    recipe = recipe_of(fit)
    folder = out / "fits" / name
    words = command_of(fit) + ([f"--model.start={start}"] if start else [])
    # The study's own additions: where the run lives, and to go on from its last checkpoint when there is one.
    words += [f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    trainer, sampling = recipe.get("trainer") or {}, (recipe.get("model") or {}).get("sampling") or {}
    steps = trainer.get("max_steps", -1)
    rows = (
        (recipe.get("data") or {}).get("batch_size", 8)
        * sampling.get("samples", 4)
        * sampling.get("max_new_tokens", 128)
    )
    config = {"recipe": recipe, "start": fit.start, "files": digests([recipe, "" if needs else fit.start])}
    effort = max(steps, 1) * rows * 3e-4 + 15
    return Step("fit", name, {"words": words}, [folder / "done.json"], needs, config, effort, [folder])


def _evaluation_step(study: Study, name: str, point: Point, needs: list[str], folder: str, out: Path) -> Step:
    given = study.evaluation
    temperature = given.temperature if point.temperature is None else point.temperature
    settings = asdict(given)
    settings.pop("headline")  # decides what is shown, not what is measured
    settings["temperature"] = temperature
    settings["dtype"] = given.dtype if point.dtype is None else point.dtype
    file = out / "systems" / f"{name}.json"
    heard = out / "samples" / name
    guidance = {"scale": point.guidance, "negative": point.negative, "negative_system": point.negative_system}
    job = settings | {"do": "evaluate", "name": name, "kind": study.kind(name), "model": folder, "guidance": guidance}
    job |= {"file": str(file), "samples_folder": str(heard)}
    config = settings | {"point": asdict(point), "files": digests([settings, folder if not needs else ""])}
    cost = 2 if point.guidance != 1 else 1
    effort = 2e-4 * cost * given.samples * len(given.seeds) * given.max_new_tokens * 24 + 3
    return Step("evaluate", name, job, [file, heard], needs, config, effort, [heard])


class Ledger:
    """What was done before, one small file a step; believed only when the outputs are still what the step left.

    Args:
        out: the folder of the study.
        under_other_code: whether a step made by other code of this package still counts.
    """

    def __init__(self, out: Path, under_other_code: bool) -> None:
        self.folder = out / "steps"
        self.under_other_code = under_other_code
        self.source = source_digest()
        self.other_code: list[str] = []
        """Steps that were kept although the code is another now."""

    def _file(self, label: str) -> Path:
        return self.folder / f"{label}.json"

    def entry(self, label: str) -> dict[str, Any]:
        """What was noted about a step; empty when nothing was."""
        file = self._file(label)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def fingerprint(self, step: Step) -> str:
        """A digest of all that decides a step's result. The steps before it must be done."""
        before = [self.entry(need)["made"] for need in step.needs]
        text = json.dumps([step.config, before, cfg_distill.__version__], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_done(self, step: Step) -> bool:
        """Whether a step may be skipped."""
        entry = self.entry(step.label)
        if entry.get("state") != "done" or entry["fingerprint"] != self.fingerprint(step):
            return False
        if not all(path.exists() for path in step.outputs) or entry["made"] != digest(step.outputs):
            return False
        if entry["source"] != self.source:
            if not self.under_other_code:
                return False
            self.other_code.append(step.label)
        return True

    def begin(self, step: Step) -> bool:
        """Note that a step begins. Its traces are kept, to go on from, only if they are of the same step."""
        entry, fingerprint = self.entry(step.label), self.fingerprint(step)
        same_code = self.under_other_code or entry.get("source") == self.source
        goes_on = entry.get("state") == "begun" and entry["fingerprint"] == fingerprint and same_code
        if not goes_on:
            for path in [*step.traces, *step.outputs]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        earlier = entry.get("seconds", 0.0) if goes_on else 0.0
        self._write(step, {"state": "begun", "fingerprint": fingerprint, "source": self.source, "seconds": earlier})
        return goes_on

    def pause(self, step: Step, seconds: float) -> None:
        """Note how long an unfinished step has run so far."""
        entry = self.entry(step.label)
        self._write(step, entry | {"seconds": entry["seconds"] + seconds})

    def finish(self, step: Step, seconds: float, peak_memory_mb: float) -> None:
        """Note that a step is done, what it made and what it cost."""
        entry = self.entry(step.label)
        cost = {"seconds": round(entry["seconds"] + seconds, 2), "peak_memory_mb": round(peak_memory_mb)}
        self._write(step, entry | cost | {"state": "done", "made": digest(step.outputs)})

    def _write(self, step: Step, entry: dict[str, Any]) -> None:
        write_text(self._file(step.label), json.dumps(entry, indent=1) + "\n")
