"""Samples for a person: printed, and written as text, as tunes (ABC, MIDI, WAV) or as sound (WAV)."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

from cfg_distill.audio import Waveform, write_audio
from cfg_distill.generators import Generator
from cfg_distill.sampling.samples import Samples


def writes_tunes(generator: Generator) -> bool:
    """Whether a model speaks the tokens of the embedded text-to-music model."""
    tokenizer = getattr(generator, "tokenizer", None)
    return tokenizer is not None and "<origin:any>" in tokenizer.get_vocab()


class Writer:
    """Keeps the samples of the first prompts; :meth:`finish` writes them, a file or three each.

    Args:
        generator: the model that made them.
        folder: where they go; it appears whole.
        prompts: of how many prompts.
        samples: how many of each.
    """

    def __init__(self, generator: Generator, folder: Path, prompts: int, samples: int) -> None:
        self.are_tunes = writes_tunes(generator)
        self.folder = folder
        self.prompts = prompts
        self.samples = samples
        self.kept: list[tuple[str, list[Any]]] = []

    def __call__(self, samples: Samples) -> None:
        missing = self.prompts - len(self.kept)
        for prompt, group in list(zip(samples.prompts, samples.groups(), strict=True))[: max(missing, 0)]:
            self.kept.append((prompt, group[: self.samples]))

    def finish(self) -> None:
        """Write what was kept."""
        staged = self.folder.with_name(f".{self.folder.name}.partial")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        for number, (prompt, group) in enumerate(self.kept, start=1):
            for letter, output in zip("abcdefghijklmnopqrstuvwxyz", group, strict=False):
                stem = f"{number:02}{letter}"
                if isinstance(output, Waveform):
                    write_audio(staged / f"{stem}.wav", output)
                    output = f"{stem}.wav"
                (staged / f"{stem}.txt").write_text(f"{prompt}\n\n{output}\n", encoding="utf-8")
                if self.are_tunes:
                    from cfg_distill.tunes.rendering import render

                    render(output, staged, stem, prompt)
        shutil.rmtree(self.folder, ignore_errors=True)
        staged.replace(self.folder)


def show(samples: Samples, tunes: bool) -> None:
    """Print the samples; of sound, what can be said of it."""
    for prompt, group in zip(samples.prompts, samples.groups(), strict=True):
        for number, output in enumerate(group, start=1):
            print(f"== {prompt} ({number} of {len(group)})")
            print(_as_text(output, prompt, tunes), end="\n\n")


def write(samples: Samples, out: Path, tunes: bool) -> None:
    """Write the samples into a folder, named after place, prompt and number."""
    out.mkdir(parents=True, exist_ok=True)
    for place, (prompt, group) in enumerate(zip(samples.prompts, samples.groups(), strict=True), start=1):
        words = "-".join(re.findall(r"\w+", prompt.lower()))[:60].strip("-") or "unconditional"
        for number, output in enumerate(group, start=1):
            stem = f"{place:02d}-{words}-{number}"
            if isinstance(output, Waveform):
                gain = write_audio(out / f"{stem}.wav", output)
                if gain:
                    print(f"{stem}.wav: turned down by {-gain:.1f} dB, so that it does not clip.")
            elif tunes:
                from cfg_distill.tunes.rendering import render

                render(output, out, stem, prompt)
            else:
                (out / f"{stem}.txt").write_text(output, encoding="utf-8")
    print(f"Wrote {len(samples.outputs)} samples to {out}.")


def _as_text(output: Any, prompt: str, tunes: bool) -> str:
    if isinstance(output, Waveform):
        channels = {1: "mono", 2: "stereo"}.get(len(output.samples), f"{len(output.samples)} channels")
        peak = f"{20 * math.log10(output.peak):.1f} dBFS" if output.peak else "silence"
        return f"{output.seconds:.2f} s, {output.rate} Hz, {channels}, peak {peak}"
    if not tunes:
        return output
    from cfg_distill.tunes.prompts import understand
    from cfg_distill.tunes.rendering import setting_of, to_abc

    return to_abc(setting_of(output, understand(prompt)), prompt).rstrip()
