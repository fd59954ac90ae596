"""Real tiny studies: through to the end, killed, interrupted, added to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cfg_distill.cli import main
from cfg_distill.evaluation import System

PATIENCE_SECONDS = 600  # on a busy machine


class StudyProcess:
    """``cfg-distill study study.yaml``, its output in a file."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "cfg_distill.cli", "study", "study.yaml"]
        with Path("said.txt").open("w") as said:
            self.process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)
        self.began = time.time()

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        return self.process.wait(PATIENCE_SECONDS), Path("said.txt").read_text()

    def wait_until_in_fit(self, fit: str, step: int) -> None:
        """Until this run's fit has done so many steps."""
        file = Path("out/steps") / f"fit {fit}.progress"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (file.exists() and file.stat().st_mtime > self.began and steps_of(fit) >= step):
            assert self.process.poll() is None, Path("said.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)


def steps_of(fit: str) -> int:
    file = Path("out/steps") / f"fit {fit}.progress"
    return json.loads(file.read_text())["done"] if file.exists() else 0


def entry(label: str) -> dict:
    return json.loads((Path("out/steps") / f"{label}.json").read_text())


def fits_running() -> list[str]:
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    here = str(Path("out").resolve())
    return [
        line
        for line in found.splitlines()
        if "cfg_distill.cli fit" in line and (here in line or "--trainer.default_root_dir=out/" in line)
    ]


@pytest.mark.slow
def test_a_study_that_is_killed_and_interrupted_ends_like_one_that_is_not(real, change):
    change({"fits/quality/overrides": {"trainer.max_steps": 40}, "out": str(real / "out")})
    # What a user would type, never interrupted.
    assert (
        main(["fit", "--config", "fit.yaml", "--trainer.max_steps=40", f"--trainer.default_root_dir={real / 'mine'}"])
        == 0
    )
    (checkpoint,) = (real / "mine").rglob("last.ckpt")
    assert main(["export", "--checkpoint", str(checkpoint), "--out", "mine_exported"]) == 0

    # Killed without warning in its first fit: the fit notices, and stops before it is done.
    study = StudyProcess()
    study.wait_until_in_fit("quality", 4)
    study.process.kill()
    study.end()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while fits_running():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    killed_at = steps_of("quality")
    assert 4 <= killed_at < 40
    assert entry("fit quality")["state"] == "begun"

    # Started again, it goes on from the last checkpoint; interrupted, it stops its fit and says how to go on.
    study = StudyProcess()
    study.wait_until_in_fit("quality", killed_at + 2)
    study.process.send_signal(signal.SIGINT)
    code, text = study.end()
    assert code == 130, text
    assert "To go on: cfg-distill study study.yaml" in text
    assert not fits_running()

    # To the end.
    code, text = StudyProcess().end()
    assert code == 0, text
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (Path("out/students/quality"), Path("mine_exported"))
    )
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert "Restored all states from the checkpoint" in Path("out/logs/fit_quality.log").read_text()
    _check_results(text)

    # Nothing is left to do; an addition does only what is new.
    before = {path.name: path.stat().st_mtime_ns for path in Path("out/steps").iterdir()}
    code, text = StudyProcess().end()
    assert code == 0, text
    assert {path.name: path.stat().st_mtime_ns for path in Path("out/steps").iterdir()} == before
    change({"merges/quarter": {"models": ["quality", "diversity"], "weights": [0.75, 0.25]}})
    code, text = StudyProcess().end()
    assert code == 0, text
    after = {path.name: path.stat().st_mtime_ns for path in Path("out/steps").iterdir()}
    remade = {name for name, when in after.items() if before.get(name) != when}
    assert remade == {"merge quarter.json", "evaluate quarter.json", "front.json"}

    # A change is refused with exit code 2.
    change({"evaluation/samples": 4})
    code, text = StudyProcess().end()
    assert code == 2
    assert "evaluation.samples: 3 -> 4" in text
    assert "Traceback" not in text


def _check_results(text: str) -> None:
    out = Path("out")
    front = json.loads((out / "front.json").read_text())
    assert front.keys() == {"systems", "claims", "hypervolume", "protocol", "notes", "fronts", "timing", "choice"}
    assert front["notes"][:2] == [
        "3 prompts are fewer than the 8 that an interval needs: it covers less than it says.",
        "One training seed: the intervals say nothing about another training run.",
    ]
    assert [(each["system"], each["rows"]) for each in front["timing"]] == [
        (name, rows) for name in ("base", "guidance 2", "quality") for rows in (1, 4, 32)
    ]
    assert all(0 < each["seconds"] < 5 and each["tokens"] == 6 for each in front["timing"])
    assert [(each["cost"], len(each["baselines"])) for each in front["fronts"]] == [("equal", 2), ("any", 3)]
    assert [point["knob"] for point in front["fronts"][0]["curve"]] == [0.0, 0.5, 1.0]
    names = [system["name"] for system in front["systems"]]
    assert names == ["base", "base T 0.8", "guidance 2", "quality", "diversity", "half"]
    for system in front["systems"]:
        for axis in ("quality", "diversity"):
            for interval in system[axis].values():
                assert interval.keys() == {"mean", "low", "high"}
                assert interval["low"] <= interval["mean"] <= interval["high"]
        assert system["relative_cost"] == (2.0 if system["name"] == "guidance 2" else 1.0)
        assert system["seeds"] == [0, 1]
        assert system["training_seeds"] == ([1] if system["name"] in ("quality", "diversity", "half") else [])
        assert 0 < system["seconds"] < 10
        assert system["samples"] == 3
        assert len(list((out / "samples" / system["name"]).glob("*.txt"))) == 6
    assert len(front["claims"]) == 5
    assert {claim["verdict"] for claim in front["claims"]} <= {"holds", "fails", "undecided"}
    assert (out / "front.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "table.txt").read_text() in text
    assert re.search(r"study +\d+%, \d+:\d\d (to \d+:\d\d )?left: fit 1 of 2 quality", text)  # without a terminal
    for folder in ("students/quality", "students/diversity", "merges/half"):
        AutoModelForCausalLM.from_pretrained(out / folder)
        AutoTokenizer.from_pretrained(out / folder)
    timings = json.loads((out / "timings.json").read_text())
    assert timings["wall_seconds"] > 0
    assert timings["steps"]["fit quality"]["peak_memory_mb"] > 50


@pytest.mark.slow
def test_three_training_seeds_are_trained_merged_pooled_and_judged(real, change):
    # One fit per seed: starting its process is what takes the time. A start from the student of the own seed is in the plan.
    change({"training_seeds": [3, 4, 5], "fits/quality/overrides": {"trainer.max_steps": 2}, "evaluation/timing": []})
    change({"fits/diversity": None, "merges/half/models": ["quality", "base"], "claims/diversity": "half"})
    code, text = StudyProcess().end()
    assert code == 0, text
    out = Path("out")
    weights = [load_file(out / "students" / "quality" / f"seed {seed}" / "model.safetensors") for seed in (3, 4, 5)]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    front = json.loads((out / "front.json").read_text())
    systems = {system["name"]: system for system in front["systems"]}
    assert list(systems) == ["base", "base T 0.8", "guidance 2", "quality", "half"] and len(front["claims"]) == 5
    assert systems["half"]["training_seeds"] == [3, 4, 5] and systems["base"]["training_seeds"] == []
    assert not any("training seed" in note for note in front["notes"])
    # The pooled values are those of the runs, each evaluated for itself.
    pooled = System.read(out / "systems" / "half.json")
    runs = [System.read(out / "systems" / "half" / f"seed {seed}.json") for seed in (3, 4, 5)]
    assert pooled.runs("distinct").shape == (3, 3, 2)
    assert pooled.values["distinct"] == [run.values["distinct"] for run in runs]
    assert "training seeds 3, 4, 5" in (out / "table.txt").read_text()
    # Merged from the student of its own seed.
    for seed in (3, 5):
        folders = [out / "students/quality" / f"seed {seed}", Path("base"), out / "merges/half" / f"seed {seed}"]
        first, second, half = (load_file(folder / "model.safetensors") for folder in folders)
        assert all(torch.allclose(half[name], (first[name] + second[name]) / 2, atol=1e-6) for name in half)
    # A further seed leaves what is there, and needs no checkpoint of the others.
    for checkpoint in (out / "fits").rglob("*.ckpt"):
        checkpoint.unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (out / "steps").iterdir()}
    change({"training_seeds": [3, 4, 5, 6]})
    code, text = StudyProcess().end()
    assert code == 0, text
    after = {path.name: path.stat().st_mtime_ns for path in (out / "steps").iterdir()}
    assert {name for name, when in before.items() if after[name] != when} == {"front.json"}
    assert System.read(out / "systems" / "half.json").training_seeds == [3, 4, 5, 6]


@pytest.mark.slow
def test_problems_that_take_torch_to_see_are_told_together(real, change, capsys):
    change(
        {
            "evaluation/metrics/words": {"class_path": "mine.Wrods"},
            "evaluation/metrics/distinct": {"class_path": "cfg_distill.metrics.DistinctN", "init_args": {"m": 3}},
            "fits/quality/overrides": {"model.sampling.sampels": 3},
            "fits/diversity/overrides": {"model.guidance.scale": -1.0},
        }
    )
    assert main(["study", "study.yaml"]) == 2
    text = capsys.readouterr().err
    assert "evaluation.metrics.words" in text
    assert "evaluation.metrics.distinct" in text
    assert "fits.quality" in text
    assert "sampels" in text
    assert "fits.diversity" in text
    assert "guidance.scale" in text
    assert "Traceback" not in text
    assert not Path("out/steps").exists()
