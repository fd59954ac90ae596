"""Samples to be read and heard: text; ABC, MIDI and WAV for tunes; WAV for sound."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cfg_distill.audio import Waveform, write_audio
from cfg_distill.generators import Generator
from cfg_distill.samples import Samples


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
