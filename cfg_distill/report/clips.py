"""Clips of a study for raters: samples that the study wrote, or samples that are drawn anew from its models.

All clips are played with one gain. A gain per clip would change loudness, which is a property of the model.
"""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.evaluation.system import System
from cfg_distill.files import read_exactly
from cfg_distill.report.results import located, results_folder
from cfg_distill.report.sounds import SUFFIXES, soundfile_library
from cfg_distill.study.config import Study, study_of
from cfg_distill.study.record import begun_with, digest

if TYPE_CHECKING:
    from cfg_distill.evaluation.renderers import Renderer
    from cfg_distill.prompt import PromptLike
    from cfg_distill.sampling import Samples

PEAK = 0.99
"""As :data:`cfg_distill.audio.PEAK`: a written clip that reaches it may have been turned down on its own."""


@dataclass(frozen=True)
class Finished:
    """A finished study.

    Attributes:
        folder: of its results.
        study: as its record has it.
        systems: by name, in the order of the study.
    """

    folder: Path
    study: Study
    systems: dict[str, System]

    def model_of(self, name: str) -> str:
        """The model of a system: as it was evaluated, or at its place in a folder that was moved."""
        return str(located(self.folder, self.systems[name].model, self.study.makes(name))[0])

    def problems_of_model(self, name: str) -> list[Problem]:
        """Why no samples of a system can be drawn, as far as its folder tells."""
        kind, model = self.systems[name].kind, self.model_of(name)
        if name not in self.study.all_systems():
            return [Problem("systems", f"`{name}` has no model to draw samples from. Leave it out.")]
        if kind in ("student", "merge") and not Path(model).is_dir():
            text = (
                f"expected the model of `{name}` in `{model}`, but it is not there. Run the study again: it remakes it."
            )
            return [Problem("study", text)]
        return []

    def written_of(self, name: str) -> Path | None:
        """The folder of the written samples of a system, of its first training seed where there are several; None where they
        are not as the study left them."""
        for part in (name, *(f"{name}/seed {seed}" for seed in self.study.training_seeds[:1])):
            entry = self.folder / "steps" / f"evaluate {part.replace('/', ' ')}.json"
            outputs = [self.folder / "systems" / f"{part}.json", self.folder / "samples" / part]
            if entry.is_file() and all(path.exists() for path in outputs):
                made = json.loads(entry.read_text(encoding="utf-8")).get("made")
                return outputs[1] if made == digest(outputs) else None
        return None


@dataclass(frozen=True)
class Clip:
    """One sample for raters: a sound file, or a text."""

    file: Path | None = None
    text: str = ""


Clips = dict[tuple[str, int, int], Clip]
"""Clips by system, place of the prompt from 0 on, and number of the sample from 0 on."""


def read_finished(path: str | Path) -> Finished:
    """Read a finished study.

    Args:
        path: the folder of its results, or the study file.

    Raises:
        ConfigError: there is none, it is not finished, or it is of another version.
    """
    folder = results_folder(path)
    if not folder.is_dir():
        text = f"Study `{path}` has not been run: there is no `{folder}`. Run `cfg-distill study {path}` first."
        raise ConfigError(text)
    record, again = begun_with(folder), f"Run `cfg-distill study` with `--out {folder}`: it goes on."
    if record is None:
        raise ConfigError(f"Expected a study in `{folder}`, but it holds no study.json. Check the path.")
    study, problems = study_of(record["study"])
    if problems:
        written = f"which version {record.get('version', 'unknown')} wrote"
        raise ConfigError([f"Study `{folder}`, {written}: {problem} Run the study anew." for problem in problems])
    systems, missing, names = {}, [], study.all_systems()
    for name in names:
        file = folder / "systems" / f"{name}.json"
        try:
            systems[name] = System.read(file)
        except FileNotFoundError:
            missing.append(file.name)
        except (ValueError, TypeError) as error:
            text = f"Study `{folder}`: `{file.name}` cannot be read: {' '.join(str(error).split())}. Remove it. {again}"
            problems.append(Problem("", text))
    if missing:
        first = f"`{missing[0]}`" + " and others" * (len(missing) > 1)
        text = (
            f"Study `{folder}` is not finished: {len(missing)} of {len(names)} systems are missing ({first}). {again}"
        )
        problems.insert(0, Problem("", text))
    if problems:
        raise ConfigError(problems)
    return Finished(folder, study, systems)


# Samples that the study wrote


def written_clips(finished: Finished, systems: Sequence[str], prompts: Sequence[str], group: int) -> Clips | None:
    """The samples that the study wrote of its first prompts; None where they do not suffice.

    They do not suffice when there are too few, when a file was changed since, and when a sound was turned down on its own.
    """
    from cfg_distill.evaluation.written import stem_of

    clips: Clips = {}
    for system in systems:
        folder = finished.written_of(system)
        if folder is None:
            return None
        for place, prompt in enumerate(prompts):
            for number in range(group):
                stem = folder / stem_of(place + 1, prompt, number + 1)
                clip = _written(stem, prompt)
                if clip is None:
                    return None
                clips[system, place, number] = clip
    return clips


def _written(stem: Path, prompt: str) -> Clip | None:
    sounds = [file for suffix in SUFFIXES if (file := stem.with_name(f"{stem.name}{suffix}")).is_file()]
    if sounds:  # one that loses something is no sample of the model
        readable = sounds[0].suffix == ".wav" or soundfile_library() is not None
        is_whole = readable and sounds[0].suffix != ".ogg" and not _was_turned_down(sounds[0])
        return Clip(sounds[0]) if is_whole else None
    text, head = stem.with_name(f"{stem.name}.txt"), f"{prompt}\n\n"
    content = read_exactly(text) if text.is_file() else ""
    return Clip(text=content.removeprefix(head).removesuffix("\n")) if content.startswith(head) else None


def _was_turned_down(file: Path) -> bool:
    soundfile = soundfile_library()
    if soundfile is None:
        return False
    samples_LC, _ = soundfile.read(str(file), dtype="float32", always_2d=True)
    return abs(float(abs(samples_LC).max(initial=0.0)) - PEAK) < 2 / 32768


# Samples that are drawn anew


def drawn_clips(
    finished: Finished, systems: Sequence[str], prompts: Sequence[PromptLike], group: int, seed: int, folder: Path
) -> Clips:
    """Samples of the study's models, sampled as the study did but for their number and the seed. A bar shows the progress.

    Args:
        finished: the study.
        systems: whose samples.
        prompts: of the samples.
        group: samples per prompt.
        seed: of sampling.
        folder: for sound files.

    Raises:
        ConfigError: a model cannot be loaded, or a prompt is too long for one: all problems before a model is loaded.
    """
    from cfg_distill.data.reading import templated
    from cfg_distill.errors import problems_of
    from cfg_distill.evaluation.anneal import Anneal, annealed
    from cfg_distill.evaluation.chosen import conditioner_of
    from cfg_distill.evaluation.measure import evaluate
    from cfg_distill.evaluation.progress import bar_over
    from cfg_distill.evaluation.renderers import renderer_of
    from cfg_distill.generators import device
    from cfg_distill.sampling import problems_of_lengths
    from cfg_distill.study.checking import said_by
    from cfg_distill.study.sampled import generator_of, guidance_of, sampling_of

    given, configs = finished.study.evaluation, finished.study.all_systems()
    generators, problems = {}, []
    for name in systems:
        system = replace(configs[name], model=finished.model_of(name))
        generator = generator_of(given, system)
        sampling = replace(sampling_of(given, system), samples=group)
        guidance, asked = guidance_of(system, sampling.max_new_tokens), templated(system.prompt, prompts)
        found = problems_of(generator) or problems_of_lengths(generator, asked, sampling, guidance)
        problems += said_by(f"System `{name}`", found)
        generators[name] = (generator, sampling, guidance)
    if problems:
        raise ConfigError(problems)
    clips: Clips = {}
    with bar_over("drawing", list(systems)) as report:
        for number, name in enumerate(systems):
            generator, sampling, guidance = generators.pop(name)
            given_anneal = finished.systems[name].anneal
            anneal = None if given_anneal is None else Anneal(**given_anneal)
            renderer, _ = renderer_of(generator.path)
            keep = _Keep(clips, name, renderer, folder / f"{number:02}")
            evaluate(
                annealed(generator.load().to(device()), anneal, sampling.max_new_tokens),
                prompts,
                sampling,
                guidance,
                {},
                seeds=[seed],
                batch_size=given.batch_size,
                progress=report(number),
                listen=keep,
                template=configs[name].prompt,
                conditioner=conditioner_of(configs[name].conditioner, group),
            )
    return clips


class _Keep:
    """Puts the samples of a system among the clips, and sound into files that hold it as the model made it."""

    def __init__(self, clips: Clips, system: str, renderer: Renderer, folder: Path) -> None:
        self.clips, self.system, self.renderer, self.folder = clips, system, renderer, folder
        self.place = 0
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, samples: Samples) -> None:
        from cfg_distill.evaluation.written import write_exactly

        for prompt, group in zip(samples.prompts, samples.groups(), strict=True):
            for number, sample in enumerate(group):
                stem = f"{self.place}-{number}"
                write_exactly(sample, str(prompt), self.folder, stem, self.renderer)
                file = self.folder / f"{stem}.wav"
                clip = Clip(file) if file.is_file() else Clip(text=str(sample))
                self.clips[self.system, self.place, number] = clip
            self.place += 1


# Sound files of a page


def common_gain(files: Sequence[Path]) -> float:
    """The one gain for all sounds: 1, or less where the loudest would clip."""
    soundfile = soundfile_library()
    if soundfile is None:
        return 1.0
    loudest = 0.0
    for file in files:
        samples_LC, _ = soundfile.read(str(file), dtype="float32", always_2d=True)
        loudest = max(loudest, float(abs(samples_LC).max(initial=0.0)))
    return min(1.0, PEAK / loudest) if loudest > 1 else 1.0


def encoded(file: Path, gain: float) -> tuple[bytes, str, float]:
    """A sound as a browser plays it: FLAC, which loses nothing, or WAV where the audio extra is missing.

    Returns:
        The file's content, its suffix, and its seconds.
    """
    soundfile = soundfile_library()
    if soundfile is None:
        with wave.open(str(file), "rb") as sound:
            return file.read_bytes(), ".wav", sound.getnframes() / sound.getframerate()
    exact = gain == 1 and soundfile.info(str(file)).subtype == "PCM_16"
    samples_LC, rate = soundfile.read(str(file), dtype="int16" if exact else "float32", always_2d=True)
    content = io.BytesIO()
    soundfile.write(content, samples_LC if exact else samples_LC * gain, rate, format="FLAC", subtype="PCM_16")
    return content.getvalue(), ".flac", len(samples_LC) / rate
