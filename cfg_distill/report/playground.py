"""Samples on demand of the models of a finished study: any setting of its knob, beside the guided base."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.folders import is_adapter
from cfg_distill.folders.history import history_of
from cfg_distill.report.clips import read_finished
from cfg_distill.report.front_view import FrontView
from cfg_distill.report.knob import Line, line_of
from cfg_distill.report.results import read_results
from cfg_distill.report.sounds import Sample, samples_of, with_whole_sound

if TYPE_CHECKING:
    from cfg_distill.evaluation.renderers import Renderer
    from cfg_distill.generators import Generator
    from cfg_distill.sampling import Samples

MOST_SAMPLES = 16
"""More than this is no side by side."""


@dataclass(frozen=True)
class Drawn:
    """The samples of one model for a prompt.

    Attributes:
        name: of the model, as a heading.
        note: how it was sampled, and what that cost.
        samples: what was drawn.
        remarks: on empty samples.
    """

    name: str
    note: str
    samples: Sequence[Sample]
    remarks: Sequence[str] = ()


class _System(NamedTuple):
    """A model and how it is sampled: as a system of the study, but for the setting of a dial."""

    name: str
    path: str
    like: str
    dial: float | None


class Playground:
    """The students and merges of a finished study, and its guided base, ready to be sampled.

    One student is in memory at a time, beside the base. A setting of the knob that the study did not merge is merged into a
    temporary folder. A LoRA student that was trained with a dial is sampled at any setting of it.

    Args:
        study: the folder of the study, or its file.
        against: the guided system to compare with; None for the one that was distilled.
        samples: samples per prompt.
        trust: modules, beside this package, that a model's folder may name for its renderer.

    Raises:
        ConfigError: everything that is wrong with the study, before a model is loaded.
    """

    def __init__(
        self, study: str | Path, against: str | None = None, samples: int = 2, trust: Sequence[str] = ()
    ) -> None:
        if not 1 <= samples <= MOST_SAMPLES:
            text = f"expected a number from 1 to {MOST_SAMPLES}, but got {samples}."
            raise ConfigError(Problem("samples", text))
        self.finished = read_finished(study)
        self.results = read_results(self.finished.folder)
        self.front = FrontView(self.results)
        self.samples = samples
        self.trust = trust
        self.line: Line | None = line_of(self.finished.folder) if self.front.line else None
        self.students = [name for name, each in self.finished.systems.items() if each.kind in ("student", "merge")]
        if not self.students:
            text = f"expected a student or a merge in `{self.finished.folder}`, but the study has baselines alone."
            raise ConfigError(Problem("study", f"{text} Add fits to its file."))
        guided = self.results.guided(against)
        if guided.kind != "guidance":
            text = f"expected a guided system, but `{guided.name}` is sampled without guidance."
            raise ConfigError(Problem("against", text))
        self.guided = guided.name
        problems = [
            problem for name in [self.guided, *self.students] for problem in self.finished.problems_of_model(name)
        ]
        if problems:
            raise ConfigError(problems)
        self._merges = Path()
        self._turn = threading.Lock()
        self._held: dict[tuple[str, float | None], Generator] = {}

    # What there is to choose

    @property
    def ends(self) -> tuple[str, str]:
        """The models at 0 and at 1 of the knob."""
        return self.front.ends

    @property
    def prompts(self) -> list[str]:
        """The prompts of the study."""
        return list(next(iter(self.finished.systems.values())).prompts)

    @property
    def start(self) -> float | str:
        """The setting to begin with: of the knob, or without one a model."""
        chosen = self.front.chosen
        return self.front.start_knob() if self.line else chosen if chosen in self.students else self.students[0]

    def name_of(self, setting: float | str) -> str:
        """A setting in words: the name of a model that the study made, else the place of the knob."""
        if isinstance(setting, str):
            return setting
        made = {round(stop["knob"], 4): stop["name"] for stop in self.front.line}
        return made.get(round(setting, 4), f"knob {setting:.2f}")

    @cached_property
    def dial(self) -> str:
        """What the dial of the students does, in words; empty where no student was trained with one."""
        dialled = filter(_has_dial, map(self.finished.model_of, self.students))
        scales = {made.guidance for made in map(history_of, dialled) if made is not None}
        if not scales:
            return ""
        full = scales.pop() if len(scales) == 1 else None
        return f"0 is no guidance, 1 is {'all of it' if full is None else f'guidance {full:g}'}"

    def dial_of(self, setting: float | str) -> float:
        """The setting of the dial at which the study measured a setting of the knob, or a model."""
        return 1.0 if (own := self._systems[self._like(setting)].dial) is None else float(own)

    # Sampling

    def draw(
        self, prompt: str, setting: float | str, seed: int, dial: float | None = None
    ) -> tuple[list[Drawn], list[str]]:
        """Samples of a setting and of the guided base, and remarks on prompt and dial.

        Args:
            prompt: what to ask for.
            setting: of the knob, or the name of a model.
            seed: of sampling, the same for both.
            dial: its setting, for a student with one; None for that of the study. The guided base has none.

        Raises:
            ConfigError: what is wrong with the prompt, the seed or the dial.
        """
        from cfg_distill.data import problem_of_text

        wrong = [said] if (said := problem_of_text(prompt)) else []
        if not 0 <= seed < 2**40:
            wrong.append(f"Expected a seed from 0 to 2^40, but got {seed}.")
        if dial is not None and not 0 <= dial <= 1:
            wrong.append(f"Expected a setting of the dial from 0 to 1, but got {dial:g}.")
        wrong += [str(problem) for problem in ([] if wrong else self.renderer.problems_of_prompts([prompt]))]
        if wrong:
            raise ConfigError(wrong)
        with self._turn:  # models and merged folders are shared
            student = self._student(setting, dial)
            both = [self._draw(system, prompt, seed) for system in (student, self._guided())]
        no_dial = dial is not None and not _has_dial(student.path)
        remarks = [f"{student.name} was not trained with a dial: it is sampled as it is."] if no_dial else []
        return both, [*remarks, *self.renderer.remarks([prompt])]

    def load(self) -> None:
        """Load both models of the first setting, so that the first answer does not wait for them."""
        self._generator(self._guided())
        self._generator(self._student(self.start))

    def close(self) -> None:
        """Remove what was merged."""
        if self._merges != Path():
            shutil.rmtree(self._merges, ignore_errors=True)

    @cached_property
    def renderer(self) -> Renderer:
        """How samples are shown and written."""
        from cfg_distill.evaluation.renderers import renderer_of

        return renderer_of(self._guided().path, self.trust)[0]

    @cached_property
    def _systems(self) -> dict[str, Any]:
        """How each system of the study is sampled."""
        return self.finished.study.all_systems()

    def _like(self, setting: float | str) -> str:
        """The system that a setting is sampled like: all stops of the knob's line are sampled alike."""
        return setting if isinstance(setting, str) else self.front.line[0]["name"]

    def _student(self, setting: float | str, dial: float | None = None) -> _System:
        name, like = self.name_of(setting), self._like(setting)
        path = self.finished.model_of(name) if isinstance(setting, str) else self._merged(setting, name)
        own = self._systems[like].dial
        if dial is None or not _has_dial(path):
            return _System(name, path, like, own)
        return _System(f"{name}, dial {dial:.2f}", path, like, dial)

    def _guided(self) -> _System:
        return _System(self.guided, self.finished.model_of(self.guided), self.guided, self._systems[self.guided].dial)

    def _merged(self, knob: float, name: str) -> str:
        """The folder of a setting of the knob, merged where the study did not."""
        from cfg_distill.study.jobs import MergeFolders

        if name in self.finished.systems:
            return self.finished.model_of(name)
        assert self.line is not None
        if self._merges == Path():
            self._merges = Path(tempfile.mkdtemp(prefix="cfg-distill-demo-"))
        folder = self._merges / f"{knob:.4f}"
        if not folder.is_dir():
            for other in self._merges.iterdir():  # one whole model is enough
                shutil.rmtree(other, ignore_errors=True)
            weights, line = [1 - knob, knob], self.line
            MergeFolders(line.models, weights, line.method, line.start or "", str(folder)).run(lambda done, total: None)
        return str(folder)

    def _generator(self, system: _System) -> Generator:
        """The loaded model of a system; of other students none stays in memory."""
        from cfg_distill.generators import device, open_generator

        base, key = self._guided(), (system.path, system.dial)
        if key not in self._held:
            kept = [(base.path, base.dial)] if key != (base.path, base.dial) else list(self._held)
            self._held = {held: each for held, each in self._held.items() if held in kept}
            dtype = self._systems[system.like].dtype or self.finished.study.evaluation.dtype
            self._held[key] = open_generator(system.path, system.dial, dtype=dtype).load().to(device())
        return self._held[key]

    def _draw(self, system: _System, prompt: str, seed: int) -> Drawn:
        from cfg_distill.data.reading import templated
        from cfg_distill.evaluation.anneal import Anneal, annealed
        from cfg_distill.evaluation.chosen import conditioner_of
        from cfg_distill.evaluation.measure import evaluate
        from cfg_distill.evaluation.written import Writer, remarks_on
        from cfg_distill.sampling import problems_of_lengths
        from cfg_distill.study.sampled import guidance_of, sampling_of

        config, anneal = self._systems[system.like], self.finished.systems[system.like].anneal
        generator, template = self._generator(system), config.prompt
        sampling = replace(sampling_of(self.finished.study.evaluation, config), samples=self.samples)
        guidance = guidance_of(config, sampling.max_new_tokens)
        if found := problems_of_lengths(generator, templated(template, [prompt]), sampling, guidance):
            raise ConfigError([problem.text for problem in found])
        with tempfile.TemporaryDirectory(prefix="cfg-distill-") as place:
            folder, kept = Path(place) / "samples", []
            writer = Writer(generator, folder, 1, self.samples, self.renderer, "wav")

            def listen(samples: Samples) -> None:
                writer(samples)
                kept.extend(remarks_on(samples, self.renderer))

            made = evaluate(
                annealed(generator, None if anneal is None else Anneal(**anneal), sampling.max_new_tokens),
                [prompt],
                sampling,
                guidance,
                {},
                seeds=[seed],
                listen=listen,
                template=template,
                conditioner=conditioner_of(config.conditioner, self.samples),
            )
            writer.finish()
            samples = samples_of(folder, [prompt])
            with_whole_sound(samples)
        passes = "1 forward pass" if made.relative_cost == 1 else f"{made.relative_cost:g} forward passes"
        return Drawn(system.name, f"{passes} per token, {made.seconds:.2f} s per sample", samples, kept)


def _has_dial(path: str) -> bool:
    """Whether the scale of an adapter folder is a dial for guidance."""
    made = history_of(path) if is_adapter(path) else None
    return made is not None and made.dialled
