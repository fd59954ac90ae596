"""Jobs as lines of JSON, and that the study that makes them needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from made_study import read_study

from cfg_distill import checkpoints
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.headline import Headline
from cfg_distill.study import jobs
from cfg_distill.study.checking import jobs_of_checks
from cfg_distill.study.config import Claims
from cfg_distill.study.jobs import DrawFront, Evaluate, Export, FindAccelerator, decoded, encoded
from cfg_distill.study.steps import last_checkpoint, plan


def test_every_job_of_a_study_comes_back_as_it_was(place, change):
    study = read_study(change({"evaluation/ladder": "text"}))
    made = [step.work for step in plan(study, place / "out") if step.kind != "fit"]
    made += [*jobs_of_checks(study).values(), FindAccelerator()]
    assert {type(job) for job in made} == set(jobs._JOBS)
    for job in made:
        line = encoded(job)
        assert "\n" not in line
        assert decoded(line) == job
        assert type(decoded(line)) is type(job)


def test_parts_of_a_job_are_dataclasses_again(place):
    study = read_study("study.yaml")
    (job,) = [step.work for step in plan(study, place / "out") if step.label == "evaluate base T 0.8"]
    back = decoded(encoded(job))
    assert isinstance(back, Evaluate) and back.evaluation == study.evaluation
    assert back.system.temperature == 0.8 and back.system.dtype == "float32"
    front = DrawFront({"a": ["a.json"]}, Headline("q", "d"), Claims("a", "b", "c", 0.1, "d", "e"), [0.5, None], "out")
    assert decoded(encoded(front)) == front


def test_a_student_whose_checkpoint_was_deleted_is_not_exported_again(tmp_path):
    (tmp_path / "done.json").write_text(json.dumps({"checkpoint": str(tmp_path / "last.ckpt"), "digest": ""}))
    with pytest.raises(ConfigError, match=r"last\.ckpt`, to make `student` of it, but it is gone\. .*`--remake fit`"):
        Export(str(tmp_path), "student").run(lambda done, total: None)


def test_the_checkpoint_of_a_sharded_fit_is_a_folder(tmp_path, monkeypatch):
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    last.mkdir(parents=True)
    (last / "checkpoint.pt").write_text("shards beside it")
    (tmp_path / "done.json").write_text(json.dumps(last_checkpoint(tmp_path)))
    asked: list[str] = []
    monkeypatch.setattr(checkpoints, "export", lambda checkpoint, *_, **__: asked.append(checkpoint))
    Export(str(tmp_path), "student").run(lambda done, total: None)
    assert asked == [str(last)]


@pytest.mark.parametrize("name", ["class_path", "do", "run", "Export", "metrics"])
def test_names_of_the_user_mean_nothing_to_the_encoding(place, change, name):
    study = read_study(
        change({f"evaluation/metrics/{name}": {"class_path": "mine.Words", "init_args": {"do": "export"}}})
    )
    job = jobs_of_checks(study)["evaluation"]
    assert decoded(encoded(job)) == job


def test_a_plan_and_its_jobs_take_no_torch(place):
    code = (
        "import sys; from cfg_distill.study.config import load_study; from cfg_distill.study.steps import plan;"
        " from cfg_distill.study.jobs import encoded; from pathlib import Path;"
        " [encoded(step.work) for step in plan(load_study('study.yaml')[0], Path('out'))]; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
