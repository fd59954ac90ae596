"""The folder of a run: its own from the moment it is chosen, locked while it trains; and what happens when the disk fails."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import fork, wait
from lightning.fabric.plugins.environments import SLURMEnvironment
from stopped_fits import LAST, STEPS, curves, difference, state, write_recipe
from tiny import tiny_folder

from cfg_distill.callbacks import checkpoint_io
from cfg_distill.cli import main
from cfg_distill.errors import ConfigError, Stopped
from cfg_distill.recipe import Recipe, runs, stopping
from cfg_distill.recipe.command_line import start
from cfg_distill.recipe.ranks import most_processes

FIT = ["fit", "--config", "tiny.yaml"]
AGAIN = [*FIT, "--ckpt_path", "last"]


@pytest.fixture
def recipe(folder: Path, tiny_model: str) -> Path:
    """A recipe in the folder that the test stands in."""
    return write_recipe(folder, tiny_model)


@pytest.fixture(scope="module")
def begun(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped at step 4."""
    folder = tmp_path_factory.mktemp("begun")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_recipe(folder, tiny_model)
        (folder / "stops.py").write_text(
            "from lightning.pytorch import Callback\nfrom cfg_distill.errors import Stopped\n"
            "class Stops(Callback):\n    def on_train_batch_start(self, trainer, *_):\n"
            "        if trainer.global_step == 5: raise Stopped(15)\n"
        )
        import sys

        sys.path.insert(0, str(folder))
        assert main([*FIT, "--trainer.callbacks.stops=stops.Stops"]) == 143
        sys.path.remove(str(folder))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def half(begun: Path, folder: Path) -> Path:
    """A copy of it, in which the test stands."""
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    assert state()["global_step"] == 4
    return folder


# Its own


def test_two_runs_that_start_at_once_have_a_folder_each(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with runs.claimed(root, False) as one, runs.claimed(root, True) as other:
        assert (one, other) == (0, 1)
        for version in (0, 1):
            (root / f"version_{version}" / "kept").touch()
    with runs.claimed(root, False) as third:
        assert third == 2
    assert not (root / "version_2").exists(), "nothing was written into it"
    assert (root / "version_1" / "kept").exists()


def test_one_run_at_a_time_goes_on_in_a_folder(half: Path, capsys: pytest.CaptureFixture) -> None:
    before = LAST.read_bytes()
    with (LAST.parents[1] / ".lock").open("r+") as lock:
        lock.truncate()
        lock.write('{"process": 7, "host": "there"}')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(AGAIN) == 2
        said = capsys.readouterr().err
        assert "Key `ckpt_path`: expected a run that nobody goes on with, but process 7 on there trains in" in said
        assert LAST.read_bytes() == before
    assert main(AGAIN) == 0
    assert state()["global_step"] == STEPS


def test_a_refused_fit_leaves_no_folder(recipe: Path) -> None:
    start("fit", FIT[1:], check_only=True)
    assert main([*FIT, "--model.guidance.scale=-1"]) == 2
    assert not Path("runs").exists()


def test_the_folder_of_a_run_is_no_checkpoint(half: Path, capsys: pytest.CaptureFixture) -> None:
    """It was refused when the models were loaded, and left a new folder of a run."""
    run, before = LAST.parents[1], sorted(Path("runs").rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "cfg_distill.distillation.module.CFGDistillation.configure_model", lambda model: pytest.fail("loaded")
        )
        assert main([*FIT, "--ckpt_path", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"`{run}` is a folder without a checkpoint.pt. Name a file, such as `{LAST}`." in said
    assert sorted(Path("runs").rglob("*")) == before


def test_a_checkpoint_in_the_home_folder(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(half))
    assert Recipe.read(["tiny.yaml"], {"ckpt_path": f"~/{LAST}"}).values["ckpt_path"] == str(half / LAST)
    assert Recipe.read(["tiny.yaml"], {"ckpt_path": "last"}).values["ckpt_path"] == "last"


# Another's checkpoint


def test_the_checkpoint_of_another_recipe_is_refused_by_name(half: Path, capsys: pytest.CaptureFixture) -> None:
    other = tiny_folder(half / "other", seed=1)
    capsys.readouterr()
    content = yaml.safe_load(Path("tiny.yaml").read_text())
    content["model"]["generator"]["init_args"]["path"] = other
    Path("sub").mkdir()
    Path("sub/tiny.yaml").write_text(yaml.safe_dump(content))
    before = LAST.read_bytes()
    assert main(["fit", "--config", "sub/tiny.yaml", "--ckpt_path", "last"]) == 2
    said = capsys.readouterr().err
    assert "is of a run that distils" in said and "by `tiny.yaml`" in said and "by `sub/tiny.yaml`" in said
    assert "`trainer.default_root_dir`" in said and said.count("\n") == 1
    assert LAST.read_bytes() == before


def test_the_checkpoint_of_other_losses_names_the_first_tensors(half: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*AGAIN, "--model.losses.diversity=null", "--trainer.callbacks.beta=null"]) == 2
    said = capsys.readouterr().err
    assert "Key `ckpt_path`: the checkpoint is of another run: this run does not have losses.diversity." in said
    assert "Traceback" not in said


BROKEN: dict[str, Any] = {
    "cut short": lambda: LAST.write_bytes(LAST.read_bytes()[:-100]),
    "empty": lambda: LAST.write_bytes(b""),
    "text": lambda: LAST.write_text("no checkpoint"),
    "a tensor": lambda: torch.save(torch.zeros(3), LAST),
    "another's": lambda: torch.save({"state_dict": {"weight": torch.zeros(3)}}, LAST),
}


@pytest.mark.parametrize("command", ["fit", pytest.param("validate", marks=pytest.mark.slow)])
def test_a_broken_checkpoint_is_one_message(half: Path, command: str, capsys: pytest.CaptureFixture) -> None:
    LAST.with_name("last.ckpt.before").unlink(missing_ok=True)
    whole = LAST.read_bytes()
    for kind, breaks in list(BROKEN.items())[: 2 if command == "fit" else 1]:  # all: tests/test_checkpoints.py
        breaks()
        assert main([command, "--config", "tiny.yaml", "--ckpt_path", str(LAST)]) == 2, kind
        said = capsys.readouterr().err
        assert "ckpt_path" in said and "Traceback" not in said, kind
        assert not Path("runs/tiny/version_1").exists(), "it would count as a run"
        LAST.write_bytes(whole)
    for word in ("best", "hpc", "", "nowhere.ckpt")[:: 1 if command == "fit" else 3]:
        assert main([command, "--config", "tiny.yaml", f"--ckpt_path={word}"]) == 2, word
        assert "Key `ckpt_path`: expected a checkpoint or `last`, but got" in capsys.readouterr().err


# The disk


def test_a_full_disk_keeps_the_last_checkpoint(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = LAST.read_bytes()

    def sync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(checkpoint_io.os, "fsync", sync)
        assert main(AGAIN) == 2
    said = capsys.readouterr().err
    assert "cannot be written: No space left on device. The checkpoint before it is whole: `" in said
    assert "go on with `--ckpt_path last`" in said and "Traceback" not in said
    assert LAST.read_bytes() == before
    assert [path.name for path in LAST.parent.iterdir() if path.name.startswith(".")] == []
    assert main(AGAIN) == 0
    assert state()["global_step"] == STEPS


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """The system's own refusal, in the middle of a write."""
    target = tmp_path / "last.ckpt"
    saving = checkpoint_io.AtomicCheckpointIO()
    saving.save_checkpoint({"weights": torch.zeros(10)}, target)
    before, limits = target.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written: File too large. The checkpoint before it is whole"):
            saving.save_checkpoint({"weights": torch.zeros(100_000)}, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: int
) -> None:
    def mkdir(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(runs.Path, "mkdir", mkdir)
    assert main(FIT) == 2
    said = capsys.readouterr()
    assert f"Key `trainer.default_root_dir`: `runs/tiny` cannot be written: {os.strerror(error)}." in said.err
    assert "Losses:" not in said.out


def test_a_disk_with_little_room_is_said_before_the_work(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda _: usage)
    assert main([*FIT, "--trainer.max_steps=1"]) == 0
    assert "has 0.00 GB left, and two checkpoints take about 0.00 GB. Make room" in capsys.readouterr().err


VANISHING = """
import shutil
from lightning.pytorch import Callback

class Vanish(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            shutil.rmtree(trainer.logger.log_dir)
"""


def test_a_folder_that_vanishes_is_said_and_the_curve_goes_on(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    Path("vanishing.py").write_text(VANISHING)
    assert main([*FIT, "--trainer.callbacks.vanish=vanishing.Vanish"]) == 0
    said = capsys.readouterr().err
    assert said.count("Warning: the folder of this run, runs/tiny/version_0, is gone") == 1
    assert state()["global_step"] == STEPS
    assert set(curves()["train/loss"]) == set(range(1, STEPS)) | set(curves()["train/loss"])
    assert max(curves()["train/loss"]) == STEPS - 1


# Processes and SLURM


def test_a_thousand_processes_are_refused(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*FIT, "--trainer.devices=1000"]) == 2
    said = capsys.readouterr().err
    assert "Key `trainer.devices`: expected at most" in said and f"Set it to {most_processes()} or less." in said
    assert not Path("runs").exists()


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A job of SLURM, whose processes torch does not start."""
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    return monkeypatch


def test_a_job_is_put_back_into_the_queue(slurm: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def call(words: list[str]) -> int:
        asked.append(words)
        return 0

    assert stopping.requeue(signal.SIGUSR1, call) == "SLURM starts job 12 anew."
    slurm.setenv("SLURM_ARRAY_JOB_ID", "3")
    slurm.setenv("SLURM_ARRAY_TASK_ID", "4")
    stopping.requeue(signal.SIGUSR1, call)
    assert asked == [["scontrol", "requeue", "12"], ["scontrol", "requeue", "3_4"]]
    assert stopping.requeue(signal.SIGTERM, call) == "" and len(asked) == 2
    assert stopping.requeue(signal.SIGUSR1, lambda words: 1) == "`scontrol requeue 3_4` ended with exit code 1."


def test_a_job_that_slurm_starts_anew_goes_on_in_its_own_folder(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = LAST.parents[2]
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    (LAST.parents[1] / ".lock").write_text('{"job": "12"}')
    assert not runs.requeued(root)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert runs.requeued(root)
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert not runs.requeued(root), "another job's"


def test_a_signal_while_the_model_loads_ends_at_once() -> None:
    with pytest.raises(Stopped) as caught, stopping.Signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143


def test_a_resumed_run_is_the_unbroken_one_whatever_the_process(half: Path) -> None:
    processes = [fork(AGAIN, half, half / "log0")]
    assert wait(processes, 120) == [0]
    forked = state()
    shutil.rmtree("runs")
    assert main(FIT) == 0
    assert difference(state(), forked) == ""


@pytest.mark.parametrize("command", ["export", "merge"])
def test_a_full_disk_at_an_export_or_a_merge(
    half: Path, tiny_model: str, command: str, capsys: pytest.CaptureFixture
) -> None:
    words = {
        "export": ["export", "--checkpoint", str(LAST), "--out", "out"],
        "merge": ["merge", "--models", tiny_model, tiny_model, "--weights", "0.5", "0.5", "--out", "out"],
    }[command]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert "Option `--out`: `out` cannot be written: File too large. Make room" in said and "Traceback" not in said
    assert not Path("out").exists() and not Path(".out.partial").exists()
    assert main(words) == 0


def test_a_validation_leaves_the_record_of_the_fit(half: Path) -> None:
    folder = LAST.parent.parent
    before = {name: (folder / name).read_text() for name in ("config.yaml", ".lock")}
    words = ["--ckpt_path", "last", "--trainer.max_steps=777", "--model.guidance.scale=9"]
    assert main(["validate", "--config", "tiny.yaml", *words]) == 0
    assert {name: (folder / name).read_text() for name in before} == before


def test_a_validation_says_nothing_of_another_fit(half: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", "--config", "tiny.yaml"]) == 0
    assert "unfinished" not in capsys.readouterr().err


@pytest.mark.parametrize("logger", [[], ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=m"]])
def test_the_last_checkpoint_of_no_run_is_not_the_start_model(
    recipe: Path, capsys: pytest.CaptureFixture, logger: list[str]
) -> None:
    assert main(["validate", "--config", "tiny.yaml", "--ckpt_path", "last", *logger]) == 2
    assert "expected a run with a last checkpoint in `runs/tiny`, but there is none" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_weights_alone_are_validated_and_no_fit_goes_on_from_them(half: Path, capsys: pytest.CaptureFixture) -> None:
    content = torch.load(LAST, weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "callbacks"):  # as `save_weights_only` leaves them out
        del content[key]
    torch.save(content, LAST)
    assert main(["validate", "--config", "tiny.yaml", "--ckpt_path", "last"]) == 0
    capsys.readouterr()
    assert main(AGAIN) == 2
    said = capsys.readouterr().err
    assert "holds weights alone (`save_weights_only`)" in said and said.count("\n") == 1
    assert main([*FIT, "--trainer.max_steps=1"]) == 0
    assert "unfinished" not in capsys.readouterr().err
