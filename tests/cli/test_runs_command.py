"""``cfg-distill runs``: what it says of finished, stopped and running fits, and that it stays light."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cfg_distill.cli import main
from cfg_distill.recipe.listing import runs_in


def make_run(folder: Path, steps: int = 9, logged: int = 9) -> Path:
    folder.mkdir(parents=True)
    (folder / ".lock").write_text(json.dumps({"recipe": "recipes/mine.yaml"}))
    (folder / "config.yaml").write_text(f"trainer: {{max_steps: {steps}}}\n")
    rows = [f"{step},{1 / (step + 1)},{0.5 if step == 3 else ''}" for step in range(logged)]
    (folder / "metrics.csv").write_text("step,train/kl_per_token,val/distinct\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def runs(folder: Path) -> Path:
    make_run(Path("runs/one/version_0"))
    (make_run(Path("runs/study/fits/two words/version_1"), logged=4) / ".unfinished").write_text("9\n")
    make_run(Path("runs/begun/version_0"), logged=0)
    return Path("runs")


def test_runs_are_listed(runs: Path, capsys: pytest.CaptureFixture) -> None:
    os.utime("runs/one/version_0/metrics.csv", (4e9, 4e9))
    assert main(["runs"]) == 0
    head, first, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "step", "time", "size", "recipe", "last", "values"]
    assert first.split()[:4] == ["runs/one/version_0", "finished", "9/9", "-"]  # a CSV file has no times
    assert "recipes/mine.yaml  train/kl_per_token 0.111  val/distinct 0.5" in first
    (stopped,) = (line for line in rest if "two words" in line)
    assert " stopped    4/9 " in stopped
    assert len(rest) == 2 and sum("  not begun  " in line for line in rest) == 1


def test_events_of_tensorboard_are_read(runs: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter("runs/begun/version_0")
    writer.add_scalar("val/kl_per_token", 0.25, 5)
    writer.close()
    (run,) = runs_in([runs / "begun"])
    assert (run.step, run.steps, run.values) == (6, 9, {"val/kl_per_token": 0.25})


def test_the_time_of_a_run_is_that_of_its_log_without_pauses(runs: Path, capsys: pytest.CaptureFixture) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    # Two processes with a day between them, then a file that the second one opened again; the last entry is cut short.
    for number, times in enumerate([(100, 160, 200), (86400, 90000), (87000, 90023)]):
        file = runs / "begun" / "version_0" / f"events.out.tfevents.{number}"
        with file.open("wb") as stream:
            for each in times:
                RecordWriter(stream).write(Event(wall_time=each).SerializeToString())
        if number == 0:
            file.write_bytes(file.read_bytes()[:-5])
    (run,) = runs_in([runs / "begun"])
    assert run.seconds == (160 - 100) + (90023 - 86400)
    assert main(["runs", str(runs / "begun")]) == 0 and "  1:01:23  " in capsys.readouterr().out


def test_a_run_whose_lock_is_held_is_running(runs: Path) -> None:
    lock = runs / "one" / "version_0" / ".lock"
    holder = os.open(lock, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    (run,) = runs_in([runs / "one"])
    os.close(holder)
    (later,) = runs_in([runs / "one" / "version_0"])
    assert (run.state, later.state) == ("running", "finished")


def test_links_to_folders_are_entered_once(runs: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    make_run(folder / "disk/quality/version_3")
    (runs / "quality").symlink_to(folder / "disk/quality")
    (runs / "again").symlink_to(folder / "runs")  # an endless loop
    (runs / "a latest").symlink_to(folder / "runs/one/version_0")
    found = sorted(str(run.folder) for run in runs_in([runs]))
    assert found == [f"runs/{each}" for each in (
        "begun/version_0", "one/version_0", "quality/version_3", "study/fits/two words/version_1"
    )]  # fmt: skip


def test_refusals(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "empty").mkdir()
    (folder / "file.txt").touch()
    for words, told in (
        (["nowhere"], "`nowhere` does not exist"),
        (["empty"], "`empty` holds none"),
        (["file.txt"], "Argument `DIR`: expected a folder, but `file.txt` is a file"),
        ([], "`runs` does not"),
    ):
        assert main(["runs", *words]) == 2
        assert told in capsys.readouterr().err


def test_it_takes_less_than_half_a_second_of_cpu(runs: Path) -> None:
    code = (
        "import sys; from cfg_distill.cli import main; main(['runs']); assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5
