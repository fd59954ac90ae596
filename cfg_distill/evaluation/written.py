"""Samples for a person: printed, and written into a folder by the renderer that the model's own folder names."""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cfg_distill.audio import AudioForm, Waveform, compressed, within_full_scale
from cfg_distill.evaluation.renderers import Renderer, renderer_of
from cfg_distill.files import staged_folder
from cfg_distill.generators import Generator
from cfg_distill.sampling.samples import Samples


def stem_of(place: int, prompt: str, number: int) -> str:
    """The name of a sample's files, without a suffix: place of the prompt, its words, number of the sample, from 1 on.

    Example:
        >>> stem_of(1, "A lively jig, in G!", 2)
        '01-a-lively-jig-in-g-2'
    """
    return f"{place:02d}-{words_of(prompt, 60)}-{number}"


def words_of(prompt: str, most: int) -> str:
    """The first words of a prompt, for a name of at most so many letters."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))[:most]
    # No system takes a name of more than 255 bytes, and a letter may have four.
    return words.encode()[: 3 * most].decode(errors="ignore").strip("-") or "unconditional"


class Writer:
    """Keeps the samples of the first prompts; :meth:`finish` writes them.

    Beside the files of the renderer stands a text for each sample: its prompt and, of a text, the sample itself.

    Args:
        generator: the model that made them.
        folder: where they go; it appears whole.
        prompts: number of prompts.
        samples: number of samples per prompt.
        renderer: None takes the one that the model's folder names.
        audio: the form of sound files.
    """

    def __init__(
        self,
        generator: Generator,
        folder: Path,
        prompts: int,
        samples: int,
        renderer: Renderer | None = None,
        audio: AudioForm = "flac",
    ) -> None:
        if renderer is None:
            renderer, remarks = renderer_of(generator.path)
            for remark in remarks:
                print(remark, file=sys.stderr)
        self.renderer = renderer
        self.folder = folder
        self.prompts = prompts
        self.samples = samples
        self.audio = audio
        self.kept: list[tuple[str, list[Any]]] = []

    def __call__(self, samples: Samples) -> None:
        missing = self.prompts - len(self.kept)
        for prompt, group in list(zip(samples.prompts, samples.groups(), strict=True))[: max(missing, 0)]:
            self.kept.append((str(prompt), group[: self.samples]))

    def finish(self) -> None:
        """Write the samples that were kept."""
        with staged_folder(self.folder) as folder:
            for place, (prompt, group) in enumerate(self.kept, start=1):
                for number, sample in enumerate(group, start=1):
                    stem = stem_of(place, prompt, number)
                    self.renderer.write(sample, prompt, folder, stem)
                    sound = folder / f"{stem}.wav"
                    if sound.exists():
                        sound = compressed(sound, self.audio)
                    # In place of the plain renderer's text, which has no prompt.
                    content = sound.name if isinstance(sample, Waveform) else sample
                    (folder / f"{stem}.txt").write_text(f"{prompt}\n\n{content}\n", encoding="utf-8", newline="")


def show(samples: Samples, renderer: Renderer) -> None:
    """Print the samples; of sound, its length, rate and peak."""
    for prompt, group in zip(samples.prompts, samples.groups(), strict=True):
        for number, sample in enumerate(group, start=1):
            print(f"== {prompt} ({number} of {len(group)})")
            print(renderer.text(sample, str(prompt)), end="\n\n")


def remarks_on(samples: Samples, renderer: Renderer) -> list[str]:
    """A line for each prompt that got samples with nothing to read or hear: their numbers, counted from 1."""
    found = []
    for prompt, group in zip(samples.prompts, samples.groups(), strict=True):
        numbers = [str(number) for number, sample in enumerate(group, start=1) if renderer.is_empty(sample)]
        if numbers:
            listed = " and ".join([", ".join(numbers[:-1]), numbers[-1]] if numbers[1:] else numbers)
            subject = f"samples {listed} are" if numbers[1:] else f"sample {listed} is"
            found.append(f"Prompt `{prompt}`: {subject} {'silent' if isinstance(group[0], Waveform) else 'empty'}.")
    return found


def write(samples: Samples, out: Path, renderer: Renderer, audio: AudioForm = "wav") -> list[str]:
    """Write the samples into a folder, named after place, prompt and number. A new folder appears whole.

    Nothing is printed, so that no terminal and no reader of the output has a part in what is written.

    Args:
        samples: the samples.
        out: the folder.
        renderer: of the model.
        audio: the form of sound files.

    Returns:
        Lines for the user.
    """
    said = []
    with nullcontext(out) if out.exists() else staged_folder(out) as folder:
        for place, (prompt, group) in enumerate(zip(samples.prompts, samples.groups(), strict=True), start=1):
            for number, sample in enumerate(group, start=1):
                stem = stem_of(place, str(prompt), number)
                remark = renderer.write(sample, str(prompt), folder, stem)
                if (sound := folder / f"{stem}.wav").exists():
                    compressed(sound, audio)
                if remark:
                    said.append(remark)
    return [*said, f"Wrote {len(samples.outputs)} samples to {out}."]


def write_exactly(sample: Any, prompt: str, folder: Path, stem: str, renderer: Renderer) -> None:
    """Write one sample so that nothing of it changes: sound as float samples, however loud; anything else as its renderer does.

    Raises:
        ConfigError: a sound holds NaN or infinity.
    """
    if not isinstance(sample, Waveform):
        renderer.write(sample, prompt, folder, stem)
        return
    within_full_scale(sample)  # refuses NaN
    soundfile: Any = importlib.import_module("soundfile")
    soundfile.write(str(folder / f"{stem}.wav"), sample.samples.float().T.numpy(), sample.rate, subtype="FLOAT")
