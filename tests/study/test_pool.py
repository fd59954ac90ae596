"""Parts of a study whose training seeds ran apart are pooled into what one study would have written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_study import read_study
from scripts import script

from cfg_distill.evaluation import System
from cfg_distill.study.jobs import DrawFront
from cfg_distill.study.record import record_of
from cfg_distill.study.steps import plan

pool = script(Path(__file__).parents[2] / "docs" / "pool.py")
PROMPTS = ["w5", "w6 w7", "w8 w9"]


def measured(name: str, seed: int | None) -> System:
    """A system with values that differ by training seed."""
    kind = "base" if name.startswith("base") else "guidance" if name.startswith("guidance") else "student"
    system = System(name, kind, name, 1.0, 2.0 if kind == "guidance" else 1.0, 3, [0, 1], PROMPTS)
    random = np.random.default_rng([seed or 0, len(name)])
    for metric, axis in (("words", "quality"), ("distinct", "diversity"), ("length", "guard")):
        system.axes[metric] = axis
        system.values[metric] = random.uniform(size=(2, 3)).tolist()
    return replace(system, training_seeds=[] if seed is None else [seed], chain="" if seed is None else "quality")


def run_apart(path: Path, seeds: list[int], out: str) -> None:
    """What a study of some training seeds leaves behind, without its models."""
    study = replace(read_study(path), training_seeds=seeds)
    Path(out).mkdir()
    (Path(out) / "study.json").write_text(json.dumps(record_of(study)))
    job = plan(study, Path(out))[-1].work
    assert isinstance(job, DrawFront)
    for name, files in job.systems.items():
        for file, seed in zip(map(Path, files), seeds if len(files) > 1 else [None], strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            measured(name, seed).save(file)


@pytest.fixture
def parts(place: Path, change) -> Path:
    """Two parts of a study of four training seeds; returns its file."""
    path = change({"evaluation/timing": [], "training_seeds": [3, 4, 5, 6]})
    run_apart(path, [3, 4], "first")
    run_apart(path, [5, 6], "second")
    return path


def test_the_parts_of_a_study_are_pooled_as_one_study(parts, capsys):
    assert pool.main(str(parts), "out", "first", "second") == 0
    assert "training seeds 3, 4, 5, 6" in capsys.readouterr().out
    run_apart(parts, [3, 4, 5, 6], "whole")
    job = plan(read_study(parts), Path("whole"))[-1].work
    job.run(lambda done, total: None)
    assert json.loads(Path("out/front.json").read_text()) == json.loads(Path("whole/front.json").read_text())
    half = System.read(Path("out/systems/half.json"))
    assert half.training_seeds == [3, 4, 5, 6] and half.runs("words").shape == (4, 3, 2)


def test_parts_of_one_training_seed_are_pooled_too(place, change):
    """Such a part keeps its values at another place."""
    path = change({"evaluation/timing": [], "training_seeds": [3, 4]})
    for seed in (3, 4):
        run_apart(path, [seed], f"part {seed}")
    for seed in (3, 4):
        for name in ("quality", "diversity", "half"):
            measured(name, seed).save(Path(f"part {seed}/systems/{name}.json"))
    assert pool.main(str(path), "out", "part 3", "part 4") == 0
    assert System.read(Path("out/systems/half.json")).training_seeds == [3, 4]


def test_what_no_part_has_is_named(parts, capsys):
    Path("second/systems/half/seed 6.json").unlink()
    assert pool.main(str(parts), "out", "first", "second") == 2
    assert capsys.readouterr().err == "error: no part has systems/half/seed 6.json\n"
    assert not Path("out/front.json").exists()


def test_parts_of_another_study_are_refused(parts, change, capsys):
    path = change({"evaluation/samples": 4, "training_seeds": [3, 4, 5]})
    assert pool.main(str(path), "out", "first", "second", "base") == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: first: evaluation.samples: 3 -> 4",
        "error: second: evaluation.samples: 3 -> 4",
        "error: second: training_seeds: 6 is not among [3, 4, 5]",
        "error: base: no study: there is no study.json",
    ]
    assert not Path("out").exists()
