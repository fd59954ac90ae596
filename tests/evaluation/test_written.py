"""Samples as files: one naming, and folders that appear whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_folder

from cfg_distill import audio
from cfg_distill.audio import AudioForm, Waveform, compressed, read_audio, write_audio
from cfg_distill.errors import Problem
from cfg_distill.evaluation.renderers import Renderer
from cfg_distill.evaluation.written import Writer, stem_of, write
from cfg_distill.generators import CausalLM
from cfg_distill.sampling.samples import Samples


def samples_of(outputs: list[Any], prompts: list[str]) -> Samples:
    return Samples(prompts, outputs, rollout=None)  # type: ignore[arg-type]


@pytest.fixture
def generator(tmp_path: Path) -> CausalLM:
    return CausalLM(tiny_folder(tmp_path / "model"))


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("", "03-unconditional-12"),
        ("Rock & Roll / 80s", "03-rock-roll-80s-12"),
        ("../etc", "03-etc-12"),
        ("w " * 90, "03-" + "w-" * 29 + "w-12"),
        ("𝓐" * 60, "03-" + "𝓐" * 45 + "-12"),  # four bytes each, and a name has 255 at most
    ],
)
def test_names(prompt: str, stem: str) -> None:
    assert stem_of(3, prompt, 12) == stem


def test_the_first_prompts_are_kept_and_more_than_26_samples(generator: CausalLM, tmp_path: Path) -> None:
    writer = Writer(generator, tmp_path / "out", prompts=2, samples=30)
    for prompt in ("a", "b", "c"):
        writer(samples_of([f"{prompt}{number}" for number in range(40)], [prompt]))
    writer.finish()
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 60 and {file.name[:4] for file in files} == {"01-a", "02-b"}
    assert (tmp_path / "out" / "02-b-30.txt").read_text() == "b\n\nb29\n"


class Breaks(Renderer):
    def write(self, sample: Any, prompt: str, folder: Path, stem: str) -> str:
        if stem.endswith("2"):
            raise OSError("disk full")
        return super().write(sample, prompt, folder, stem)


def test_a_folder_appears_whole_or_not_at_all(generator: CausalLM, tmp_path: Path) -> None:
    out = tmp_path / "out"
    samples = samples_of(["x", "y"], ["a"])
    with pytest.raises(OSError, match="disk full"):
        write(samples, out, Breaks())
    assert not out.exists()
    writer = Writer(generator, out, 1, 2)
    writer(samples)
    writer.finish()
    broken = Writer(generator, out, 1, 2, Breaks())
    broken(samples_of(["other", "others"], ["a"]))
    with pytest.raises(OSError, match="disk full"):
        broken.finish()
    assert (out / "01-a-1.txt").read_text() == "a\n\nx\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_sound_is_written_in_the_form_that_is_asked_for(generator: CausalLM, tmp_path: Path, form: AudioForm) -> None:
    time = torch.arange(22050) / 22050
    sound = Waveform(0.5 * torch.sin(2 * torch.pi * 440 * time)[None], 22050)
    kept = Writer(generator, tmp_path / "kept", 1, 1, Renderer(), form)
    kept(samples_of([sound], ["a"]))
    kept.finish()
    write(samples_of([sound], ["a"]), tmp_path / "written", Renderer(), form)
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == sorted([f"01-a-1.{form}", "01-a-1.txt"])
    assert (tmp_path / "kept" / "01-a-1.txt").read_text() == f"a\n\n01-a-1.{form}\n"
    for folder in ("kept", "written"):
        file = tmp_path / folder / f"01-a-1.{form}"
        read = read_audio(file)
        exact = {"wav": 1 / 32000, "flac": 1 / 32000, "ogg": 0.05}[form]
        assert read.rate == 22050 and (read.samples - sound.samples).abs().max() < exact
        assert (file.stat().st_size < 30_000) == (form != "wav")


def test_without_the_audio_extra_sound_stays_wav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "a.wav", Waveform(torch.zeros(1, 800), 8000))
    monkeypatch.setattr(audio, "problems_of_audio_extra", lambda: [Problem("", "missing")])
    assert compressed(tmp_path / "a.wav", "flac") == tmp_path / "a.wav" and (tmp_path / "a.wav").exists()
