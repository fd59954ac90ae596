"""A fault in one of two processes ends both within seconds, and the message comes at once, with the rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import fork, ranks, wait
from stopped_fits import LAST, STEPS, difference, state, write_recipe

FAULT = """
import os, signal, time, torch
from lightning.pytorch import Callback

class Fault(Callback):
    '''What befalls one rank at step 2, while the other goes on.'''

    def __init__(self, kind: str, rank: int) -> None:
        self.kind, self.rank, self.fired = kind, rank, False

    def on_train_start(self, trainer, module):
        score = module.score
        def wrapped(*arguments, **settings):
            if trainer.global_rank == self.rank and trainer.global_step == 2 and not self.fired:
                self.fired = True
                open(f"fired{self.rank}", "w").write(str(time.time()))
                if self.kind == "exception": raise ZeroDivisionError("the reward broke")
                if self.kind == "memory": raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
                if self.kind != "exit": os.kill(os.getpid(), getattr(signal, self.kind))
            return score(*arguments, **settings)
        module.score = wrapped
"""
CASES = [
    ("exception", 1, 1, "rank 1 of 2, failed:", "ZeroDivisionError: the reward broke"),
    ("exception", 0, 1, "rank 0 of 2, failed:", "ZeroDivisionError: the reward broke"),
    ("memory", 1, 2, "rank 1 of 2: Out of memory in step 2", "model.micro_batch"),
    ("SIGTERM", 1, 128 + signal.SIGTERM, "Stopped at step 3 of 8. Go on:", "SIGTERM: this step is finished and saved"),
    pytest.param(
        *(
            "SIGINT",
            0,
            128 + signal.SIGINT,
            "Stopped at step 3 of 8. Go on:",
            "SIGINT: this step is finished and saved",
        ),
        marks=pytest.mark.slow,
    ),
    ("SIGKILL", 1, 1, "rank 0 of 2: another process has ended", ""),
    ("SIGKILL in shards", 1, 1, "rank 0 of 2: another process has ended", ""),
]


def start(folder: Path, tiny_model: str, *words: str, strategy: str = "ddp") -> list[int]:
    """Two processes as torchrun starts them."""
    write_recipe(folder, tiny_model, devices=2, strategy=strategy)
    (folder / "fault.py").write_text(FAULT)
    return [
        fork(["fit", "--config", "tiny.yaml", *words], folder, folder / f"log{rank}", environment)
        for rank, environment in enumerate(ranks(2))
    ]


@pytest.mark.parametrize(("kind", "rank", "code", "said", "also"), CASES)
def test_a_fault_of_one_rank_ends_both(
    folder: Path, tiny_model: str, kind: str, rank: int, code: int, said: str, also: str
) -> None:
    kind, _, shards = kind.partition(" in ")
    strategy = "fsdp2" if shards else "ddp"
    fault = f"--trainer.callbacks.fault={{class_path: fault.Fault, init_args: {{kind: {kind}, rank: {rank}}}}}"
    whole = (
        ["--model.execution.halve_micro_batch=false"] if kind == "memory" else []
    )  # else the step is repeated in halves
    codes = wait(start(folder, tiny_model, fault, *whole, strategy=strategy), 60)
    ended = time.time()
    fired = float(Path(f"fired{rank}").read_text())
    logs = [Path(f"log{number}").read_text() for number in (0, 1)]
    assert None not in codes, "a process hangs"
    assert ended - fired < 60, ended - fired  # far less on a machine that does nothing else
    assert codes[rank] == (-signal.SIGKILL if kind == "SIGKILL" else code)
    assert all(each != 0 for each in codes)
    assert any(said in log for log in logs), logs
    assert any(also in log for log in logs), logs
    if kind.startswith("SIG") and kind != "SIGKILL":
        assert codes == [code, code]
        assert state()["global_step"] == 3
        assert len(torch.load(LAST, weights_only=True)["callbacks"]["ExactResume"]["processes"]) == 2
    else:
        assert not LAST.exists(), "nothing is saved in the middle of a step"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_stopped_and_resumed_are_two_that_were_not(folder: Path, tiny_model: str, strategy: str) -> None:
    assert wait(start(folder, tiny_model, strategy=strategy), 120) == [0, 0]
    whole = state()
    Path("runs").rename("whole")
    fault = "--trainer.callbacks.fault={class_path: fault.Fault, init_args: {kind: SIGUSR1, rank: 1}}"
    assert wait(start(folder, tiny_model, fault, strategy=strategy), 120) == [128 + signal.SIGUSR1] * 2
    assert state()["global_step"] == 3
    assert wait(start(folder, tiny_model, "--ckpt_path=last", strategy=strategy), 120) == [0, 0]
    now = state()
    assert now["global_step"] == whole["global_step"] == STEPS
    assert difference(now, whole) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank", "code"), [("exception", 1, 1), ("exception", 0, 1), ("SIGTERM", 0, 143)])
def test_the_same_under_the_processes_that_lightning_starts(
    folder: Path, tiny_model: str, kind: str, rank: int, code: int
) -> None:
    """One command, as a user types it: the first process starts the other."""
    write_recipe(folder, tiny_model, devices=2, strategy="ddp")
    (folder / "fault.py").write_text(FAULT)
    fault = f"--trainer.callbacks.fault={{class_path: fault.Fault, init_args: {{kind: {kind}, rank: {rank}}}}}"
    command = [sys.executable, "-m", "cfg_distill.cli", "fit", "--config", "tiny.yaml", fault]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path[1:]])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=environment)
    assert time.time() - float(Path(f"fired{rank}").read_text()) < 60
    assert done.returncode == code, done.stderr
    said = "Stopped at step 3 of 8. Go on:" if kind == "SIGTERM" else f"rank {rank} of 2, failed:"
    assert done.stderr.count(said) == 1, done.stderr
    assert LAST.exists() == (kind == "SIGTERM")
