"""A fit that a signal stops anywhere ends with the exit code of the signal, says how to go on, and loses nothing."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_fits import FINAL, LAST, STEPS, curves, difference, state, write_recipe

from cfg_distill.cli import main

STOPPING = """
import os, signal
from lightning.pytorch import Callback

class Kill(Callback):
    '''Sends a signal at a step, from a hook or a method of the module.'''

    def __init__(self, place: str, step: int, number: int) -> None:
        self.place, self.step, self.number = place, step, number
        self.fired = False

    def _at(self, place, trainer):
        if place == self.place and trainer.global_step == self.step and not self.fired:
            self.fired = True
            open("fired", "w").close()
            os.kill(os.getpid(), self.number)

    def on_train_start(self, trainer, module):
        def before(name):
            method = getattr(module, name)
            def wrapped(*arguments, **settings):
                self._at(name, trainer)
                return method(*arguments, **settings)
            setattr(module, name, wrapped)
        before("rollout")
        before("score")

    def on_train_batch_start(self, trainer, *_): self._at("batch start", trainer)
    def on_before_backward(self, trainer, *_): self._at("before backward", trainer)
    def on_after_backward(self, trainer, *_): self._at("backward", trainer)
    def on_before_optimizer_step(self, trainer, *_): self._at("optimizer", trainer)
    def on_train_batch_end(self, trainer, *_): self._at("batch end", trainer)
    def on_validation_start(self, trainer, *_): self._at("validation start", trainer)
    def on_validation_batch_end(self, trainer, module, out, batch, index, loader=0):
        if index == 1: self._at("validation", trainer)
    def on_validation_epoch_end(self, trainer, *_): self._at("validation end", trainer)
    def on_train_epoch_end(self, trainer, *_): self._at("epoch end", trainer)
"""


@pytest.fixture(scope="module")
def unbroken(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    with contextlib.chdir(folder):
        write_recipe(folder, tiny_model)
        assert main(["fit", "--config", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers of the test itself must be there afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert before == [signal.getsignal(number) for number in numbers]


PLACES = [
    ("optimizer", 5),
    ("validation", STEPS),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in [
            ("batch start", 0),  # before the first checkpoint
            ("batch end", STEPS),
            ("rollout", 1),
            ("score", 2),  # the last batch of an epoch
            ("validation", 4),
            ("batch end", 3),  # the last batch of an epoch
            ("validation start", 4),
            ("before backward", 4),
            ("backward", 5),
            ("epoch end", 3),
            ("validation end", 4),
            ("batch end", STEPS - 1),
        ]
    ),
]


@pytest.mark.parametrize(("place", "step"), PLACES)
def test_a_run_that_a_signal_stops_goes_on_as_if_it_had_not(
    folder: Path, tiny_model: str, unbroken: Path, handlers: None, capsys: pytest.CaptureFixture, place: str, step: int
) -> None:
    numbers = {"rollout": signal.SIGINT, "validation": signal.SIGUSR1, "batch end": signal.SIGINT}
    number = numbers.get(place, signal.SIGTERM)
    write_recipe(folder, tiny_model)
    (folder / "killing.py").write_text(STOPPING)
    kill = {"class_path": "killing.Kill", "init_args": {"place": place, "step": step, "number": int(number)}}
    words = ["fit", "--config", "tiny.yaml"]
    assert main([*words, f"--trainer.callbacks.kill={kill}"]) == 128 + number
    assert Path("fired").exists()
    said = capsys.readouterr().err
    assert f"{signal.Signals(number).name}: this step is finished and saved" in said
    assert f"of {STEPS}. Go on: cfg-distill fit --config tiny.yaml" in said
    assert [path.name for path in LAST.parent.iterdir() if path.name.startswith(".")] == []
    saved = state()["global_step"]
    assert main([*words, "--ckpt_path", "last"]) == 0
    assert saved >= step, "the step of the signal is saved"
    assert difference(state(FINAL), state(unbroken / FINAL)) == ""
    assert not LAST.parents[1].joinpath(".unfinished").exists()
    assert_curves(unbroken)
    shutil.rmtree("runs")


def assert_curves(unbroken: Path) -> None:
    """The curve is that of the unbroken run, without gaps or contradictions."""
    found, expected = curves(), curves(unbroken / LAST.parents[1])
    timed = ("epoch", "throughput/")
    for name, points in expected.items():
        if not name.startswith(timed):
            assert found[name] == points, name
    assert found.keys() == expected.keys()
    assert sum(map(len, found.values())) > 100


def test_the_exception_of_a_step_keeps_the_last_whole_checkpoint(folder: Path, tiny_model: str, unbroken: Path) -> None:
    write_recipe(folder, tiny_model)
    code = (
        "from lightning.pytorch import Callback\nclass Fail(Callback):\n    def on_after_backward(self, trainer, *_):\n"
    )
    code += "        if trainer.global_step == 6:\n            raise ZeroDivisionError('fired')\n"
    (folder / "failing_step.py").write_text(code)
    with pytest.raises(ZeroDivisionError, match="fired"):
        main(["fit", "--config", "tiny.yaml", "--trainer.callbacks.fail=failing_step.Fail"])
    assert state()["global_step"] == 4
    assert main(["fit", "--config", "tiny.yaml", "--ckpt_path", "last"]) == 0
    assert difference(state(FINAL), state(unbroken / FINAL)) == ""
    assert_curves(unbroken)


@pytest.mark.parametrize("every", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_the_last_checkpoint_is_of_the_last_step(
    every: int, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning saves every so many steps: the last of 8 saved every 3 would be of step 6."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, tiny_model)
    words = ["fit", "--config", "tiny.yaml", f"--trainer.callbacks.checkpoint.every_n_train_steps={every}"]
    assert main([*words, "--trainer.max_steps=5"]) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 5
    # It is a checkpoint of the middle of the epoch like any other: more steps go on from it.
    assert main([*words, "--ckpt_path", "last"]) == 0
    last = sorted(tmp_path.rglob(LAST.name))[-1]
    assert torch.load(last, weights_only=True)["global_step"] == STEPS
    (whole := tmp_path / "whole").mkdir()
    monkeypatch.chdir(whole)
    write_recipe(whole, tiny_model)
    assert main(words) == 0
    assert not difference(state(last), state(whole / LAST))


def test_a_checkpoint_of_the_best_validation_is_still_written_at_the_last_step(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, tiny_model)
    best = [
        "--trainer.callbacks.checkpoint.monitor=val/distinct",
        "--trainer.callbacks.checkpoint.save_top_k=-1",
        "--trainer.callbacks.checkpoint.every_n_train_steps=null",
    ]
    assert main(["fit", "--config", "tiny.yaml", *best]) == 0
    steps = sorted(torch.load(path, weights_only=True)["global_step"] for path in LAST.parent.glob("*step=*.ckpt"))
    assert steps[-1] == STEPS, steps


def test_the_last_checkpoint_is_no_link_to_an_earlier_one(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, tiny_model)
    words = ["--trainer.callbacks.checkpoint.save_last=link", "--trainer.callbacks.checkpoint.save_top_k=1"]
    assert main(["fit", "--config", "tiny.yaml", "--trainer.max_steps=5", *words]) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 5


STOPS = """
from lightning.pytorch import Callback

class Stops(Callback):
    "As Timer and EarlyStopping do, at any batch."

    def __init__(self, batch: int, hook: str) -> None:
        self.batch, self.hook, self.seen = batch, hook, 0

    def on_train_batch_end(self, trainer, *_):
        self.seen += 1
        self._ask(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer, *_):
        self._ask(trainer, "on_validation_end")

    def _ask(self, trainer, hook):
        if (self.hook, self.batch) == (hook, self.seen):
            trainer.should_stop = True
"""


ACCUMULATED = ["fit", "--config", "tiny.yaml", "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=5"]
ACCUMULATED += ["--trainer.val_check_interval=5", "--trainer.callbacks.checkpoint.every_n_train_steps=50"]


@pytest.fixture(scope="module")
def accumulated(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The last checkpoint of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("accumulated")
    with contextlib.chdir(folder):
        write_recipe(folder, tiny_model)
        assert main(ACCUMULATED) == 0
        return state()


@pytest.mark.parametrize(
    ("batch", "hook"),
    [(3, "on_train_batch_end"), (5, "on_validation_end")],
)
@pytest.mark.slow
def test_a_stop_within_a_step_waits_for_its_end(
    batch: int, hook: str, tiny_model: str, accumulated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_recipe(tmp_path, tiny_model)
    (tmp_path / "asks_to_stop.py").write_text(STOPS)
    stops = f"{{class_path: asks_to_stop.Stops, init_args: {{batch: {batch}, hook: {hook}}}}}"
    assert main([*ACCUMULATED, f"--trainer.callbacks.stops={stops}"]) == 0
    assert state()["global_step"] == (batch + 1) // 2
    assert main([*ACCUMULATED, "--ckpt_path", "last"]) == 0
    assert difference(state(), accumulated) == ""
