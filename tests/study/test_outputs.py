"""What a study may replace: only what it made, and nothing that it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from made_study import read_study

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.report.results import results_folder
from cfg_distill.study import run
from cfg_distill.study.config import load_study
from cfg_distill.study.ledger import Ledger
from cfg_distill.study.record import inputs_of, record_of
from cfg_distill.study.run import run_steps
from cfg_distill.study.steps import Step, plan

OWN = (
    "students/quality",
    "fits/diversity",
    "samples/base",
    "merges/half",
    "systems/base.json",
    "table.txt",
    "front.json",
)


@pytest.fixture
def no_work(monkeypatch) -> None:
    """No checks by workers, and no steps: a study that comes so far has refused nothing."""
    monkeypatch.setattr(run.Runner, "check", lambda runner: None)
    monkeypatch.setattr(run.Runner, "run", lambda runner: (runner.folder / "table.txt").touch())


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("own", OWN)
def test_files_of_the_user_in_the_current_folder_are_not_replaced(place, no_work, own, overwrite, capsys):
    """`study S.yaml --out . --overwrite` deleted ./students/NAME."""
    file = Path(own) if Path(own).suffix else Path(own, "model.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    if not overwrite:  # a study that was begun in this folder before the user's files came
        (place / "study.json").write_text(run.json.dumps(record_of(read_study("study.yaml"))))
    with pytest.raises(ConfigError, match=rf"Key `out`: `{own}` exists, and this study did not make it. Move it away"):
        run_steps("study.yaml", out=".", overwrite=overwrite)
    assert file.read_text() == "mine"
    assert not Path(".lock").exists()


def test_a_folder_of_results_in_the_home_folder(place, no_work, change, monkeypatch):
    """All work was done in ./~/mine, and then the results did not exist."""
    monkeypatch.setenv("HOME", str(place / "home"))
    change({"out": "runs/it/"})
    assert load_study("study.yaml")[0].out == "runs/it/"  # the record of such a study stays as it was
    change({"out": "~/mine"})
    monkeypatch.setattr(run, "_problems_that_workers_find", lambda study, known: [])
    assert run_steps("study.yaml") == place / "home" / "mine" == results_folder("study.yaml")
    assert (place / "home" / "mine" / "study.json").exists() and not Path("~").exists()


def test_a_file_is_no_folder_of_results(place, no_work, capsys):
    """It was a traceback."""
    Path("somefile").write_text("mine")
    assert main(["study", "study.yaml", "--out", "somefile"]) == 2
    assert "Key `out`: expected a folder, but `somefile` is a file. Name another folder." in capsys.readouterr().err
    assert Path("somefile").read_text() == "mine"


@pytest.mark.slow
def test_a_real_study_beside_files_of_the_user(real, change, capsys):
    change(
        {"fits": {}, "merges": {}, "claims": None, "baselines": {"base": {"model": "base"}}, "evaluation/seeds": [0]}
    )
    Path("students/base").mkdir(parents=True)  # no fit of this name
    Path("students/base/mine.txt").write_text("mine")
    assert main(["study", "study.yaml", "--out", ".", "--overwrite"]) == 0
    change({"evaluation/samples": 4})
    assert main(["study", "study.yaml", "--out", ".", "--overwrite"]) == 0  # its own results are remade
    assert '"samples": 4' in Path("front.json").read_text()
    made, values = (
        Path("systems/base.json").stat().st_mtime_ns,
        json.loads(Path("systems/base.json").read_text())["values"],
    )
    assert main(["study", "study.yaml", "--out", "."]) == 0
    assert Path("systems/base.json").stat().st_mtime_ns == made
    assert main(["study", "study.yaml", "--out", ".", "--remake", "evaluate"]) == 0
    assert Path("systems/base.json").stat().st_mtime_ns > made
    assert json.loads(Path("systems/base.json").read_text())["values"] == values
    capsys.readouterr()
    assert main(["study", "study.yaml", "--out", ".", "--remake", "evaluations"]) == 2
    assert "Did you mean `evaluate`?" in capsys.readouterr().err
    assert Path("students/base/mine.txt").read_text() == "mine"
    assert Path("train.txt").exists() and Path("base/model.safetensors").exists()


@pytest.mark.parametrize(
    ("inside", "changes"),
    [
        ("samples/base/report.txt", {"evaluation/prompts": "samples/base/report.txt"}),
        ("students/quality", {"baselines/base": {"model": "students/quality"}}),
        ("fits/quality/fit.yaml", {"fits/diversity/config": "fits/quality/fit.yaml"}),
        ("fits/quality/train.txt", {"fits/diversity/overrides": {"data.train": "fits/quality/train.txt"}}),
        ("merges/half/music", {"evaluation/metrics/distinct/init_args": {"reference": "merges/half/music"}}),
        ("samples/base/metrics.yaml", {"evaluation/metrics": "samples/base/metrics.yaml"}),
        ("samples/base/study.yaml", {}),
    ],
)
def test_what_is_read_is_not_replaced(place, change, no_work, inside, changes):
    Path("metrics.yaml").write_text(yaml.safe_dump(read_study("study.yaml").evaluation.metrics))
    source = {"quality": "base", "music": "study.yaml"}
    change(changes)
    Path(inside).parent.mkdir(parents=True)
    copied = Path(source.get(Path(inside).name, Path(inside).name))
    (shutil.copytree if copied.is_dir() else shutil.copy)(copied, inside)
    study = inside if inside.endswith("study.yaml") else "study.yaml"
    ledger = Ledger(place)
    for step in plan(read_study(study), Path()):  # as if an earlier run had made all of it
        ledger._write(step, {"state": "done"})
    with pytest.raises(
        ConfigError, match=rf"Key `out`: the step `.*` writes `.*`, and would replace `{inside}`, which"
    ):
        run_steps(study, out=".", overwrite=True)
    assert Path(inside).exists()


def test_inputs_elsewhere_are_no_problem(place):
    study = read_study("study.yaml")
    inputs = inputs_of("study.yaml", record_of(study))
    assert {"study.yaml", "fit.yaml", "report.txt", "train.txt", "base"} <= inputs.keys()
    assert Ledger(place / "out").problems_of_outputs(plan(study, place / "out"), inputs) == []


def test_a_step_removes_nothing_that_no_entry_names(tmp_path):
    step = Step("merge", "half", [], [tmp_path / "made"], config={"weights": [0.5]}, traces=[tmp_path / "trace"])
    (tmp_path / "made").write_text("mine")
    (tmp_path / "trace").mkdir()
    Ledger(tmp_path).begin(step)
    assert (tmp_path / "made").read_text() == "mine" and (tmp_path / "trace").is_dir()


def test_a_foreign_study_json_is_no_record(place):
    Path("study.json").write_text('{"title": "my thesis"}')
    with pytest.raises(ConfigError, match=r"Key `out`: `study.json` is no record of a study. Move it away"):
        run_steps("study.yaml", out=".", overwrite=True)
