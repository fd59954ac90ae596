"""`make gpu` on the CPU and tiny models: its logic, and that a static cache draws the tokens of a rollout."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, by its file: its folder has the same name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_script", HERE / "gpu.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_script_runs_through_and_writes_each_phase(gpu, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu.main(["--device", "cpu", "--tiny", "--out", "found.json"])
    shown = capsys.readouterr().out
    found = json.loads((folder / "found.json").read_text())
    by_name = {phase["name"]: phase for phase in found["phases"]}
    assert {name: phase["why"] for name, phase in by_name.items() if phase["status"] == "FAILED"} == {}
    assert code == 0
    skipped = [name for name, phase in by_name.items() if phase["status"] != "ok"]
    assert skipped == ["compiled, tiny causal", "compiled, tiny MusicGen"]
    assert by_name["step, tiny causal"]["found"]["TFLOP of the step"] > 0
    assert all(name in shown for name in by_name)


def test_what_breaks_is_written_and_the_rest_runs(gpu, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from phases import Report, Skip, Wrong

    def raises(error: Exception) -> dict:
        raise error

    report = Report(folder / "found.json", {"device": "cpu"}, seconds=60)
    report.run("wrong", lambda: raises(Wrong("2 and not 1")))
    report.run("old", lambda: raises(Skip("needs peft")))
    report.run("broken", lambda: raises(ZeroDivisionError("by zero")))
    report.run("long", dict, takes=1000)
    report.run("good", lambda: {"ratio": 1.0})
    phases = json.loads((folder / "found.json").read_text())["phases"]
    assert [phase["status"] for phase in phases] == ["FAILED", "skipped", "FAILED", "not run", "ok"]
    assert report.failed == ["wrong", "broken"]
    assert "needs peft" in capsys.readouterr().out


def test_libraries_that_are_too_old_are_named(gpu) -> None:
    assert gpu.too_old(gpu.libraries()) == []
    (told,) = gpu.too_old({"transformers": "4.1.0"})
    assert told.startswith("transformers 4.1.0 (expected")
