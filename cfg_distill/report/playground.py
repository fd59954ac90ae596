"""Samples on demand of the models of a finished study: any setting of its knob, beside the guided base."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cfg_distill.errors import ConfigError, Problem
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
    """A model and how it is sampled."""

    name: str
    path: str
    config: Any


class Playground:
    """The students and merges of a finished study, and its guided base, ready to be sampled.

    One student is in memory at a time, beside the base. A setting of the knob that the study did not merge is merged into a
    temporary folder.

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
        self._held: dict[str, Generator] = {}

    # What there is to choose

    @property
    def ends(self) -> tuple[str, str]:
        """The models at 0 and at 1 of the knob."""
        return self.front.line[0]["name"], self.front.line[-1]["name"]

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

    # Sampling

    def draw(self, prompt: str, setting: float | str, seed: int) -> tuple[list[Drawn], list[str]]:
        """Samples of a setting and of the guided base, and remarks on the prompt.

        Args:
            prompt: what to ask for.
            setting: of the knob, or the name of a model.
            seed: of sampling, the same for both.

        Raises:
            ConfigError: what is wrong with the prompt or the seed.
        """
        from cfg_distill.data import problem_of_text

        wrong = [said] if (said := problem_of_text(prompt)) else []
        if not 0 <= seed < 2**40:
            wrong.append(f"Expected a seed from 0 to 2^40, but got {seed}.")
        wrong += [str(problem) for problem in ([] if wrong else self.renderer.problems_of_prompts([prompt]))]
        if wrong:
            raise ConfigError(wrong)
        both = [self._draw(system, prompt, seed) for system in (self._student(setting), self._guided())]
        return both, self.renderer.remarks([prompt])

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

    def _student(self, setting: float | str) -> _System:
        systems = self.finished.study.all_systems()
        if isinstance(setting, str):
            return _System(setting, self.finished.model_of(setting), systems[setting])
        name = self.name_of(setting)
        any_stop = systems[self.front.line[0]["name"]]  # all stops of the line are sampled alike
        return _System(name, self._merged(setting, name), any_stop)

    def _guided(self) -> _System:
        return _System(self.guided, self.finished.model_of(self.guided), self.finished.study.all_systems()[self.guided])

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
            weights, line = [1 - knob, knob], self.line
            MergeFolders(line.models, weights, line.method, line.start or "", str(folder)).run(lambda done, total: None)
        return str(folder)

    def _generator(self, system: _System) -> Generator:
        """The loaded model of a system; of other students none stays in memory."""
        from cfg_distill.generators import device, open_generator

        base = self._guided().path
        if system.path not in self._held:
            self._held = {path: each for path, each in self._held.items() if path == base}
            dtype = system.config.dtype or self.finished.study.evaluation.dtype
            self._held[system.path] = open_generator(system.path, dtype=dtype).load().to(device())
        return self._held[system.path]

    def _draw(self, system: _System, prompt: str, seed: int) -> Drawn:
        from cfg_distill.data.reading import templated
        from cfg_distill.evaluation.measure import evaluate
        from cfg_distill.evaluation.written import Writer, remarks_on
        from cfg_distill.sampling import problems_of_lengths
        from cfg_distill.study.sampled import guidance_of, sampling_of

        generator, guidance = self._generator(system), guidance_of(system.config)
        sampling = replace(sampling_of(self.finished.study.evaluation, system.config), samples=self.samples)
        template = system.config.prompt
        if found := problems_of_lengths(generator, templated(template, [prompt]), sampling, guidance):
            raise ConfigError([problem.text for problem in found])
        with tempfile.TemporaryDirectory(prefix="cfg-distill-") as place:
            folder, kept = Path(place) / "samples", []
            writer = Writer(generator, folder, 1, self.samples, self.renderer, "wav")

            def listen(samples: Samples) -> None:
                writer(samples)
                kept.extend(remarks_on(samples, self.renderer))

            made = evaluate(generator, [prompt], sampling, guidance, {}, seeds=[seed], listen=listen, template=template)
            writer.finish()
            samples = samples_of(folder, [prompt])
            with_whole_sound(samples)
        passes = "1 forward pass" if made.relative_cost == 1 else f"{made.relative_cost:g} forward passes"
        return Drawn(system.name, f"{passes} per token, {made.seconds:.2f} s per sample", samples, kept)
