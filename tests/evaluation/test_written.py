"""Samples as files: one naming, and folders that appear whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder

from cfg_distill.evaluation.renderers import Renderer
from cfg_distill.evaluation.written import Writer, stem_of, write
from cfg_distill.generators import CausalLM
from cfg_distill.sampling.samples import Samples


def samples_of(outputs: list[str], prompts: list[str]) -> Samples:
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
