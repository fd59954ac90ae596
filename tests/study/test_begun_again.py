"""A study that stopped while it checked can be begun again."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.study.run import run_steps

ONLY_A_BASELINE = {
    "fits": {},
    "merges": {},
    "claims": None,
    "baselines": {"base": {"model": "base"}},
    "evaluation/seeds": [0],
}


@pytest.mark.slow
def test_a_mistake_that_only_a_worker_finds_can_be_mended(real, change, capsys):
    change(ONLY_A_BASELINE | {"evaluation/metrics/distinct": _distinct("x")})
    assert main(["study", "study.yaml"]) == 2
    assert "evaluation.metrics.distinct" in capsys.readouterr().err
    assert {path.name for path in Path("out").iterdir()} == {".lock", "logs"}
    change({"evaluation/metrics/distinct": _distinct(2)})
    assert main(["study", "study.yaml"]) == 0
    assert Path("out/front.json").is_file()


@pytest.mark.slow
def test_a_study_that_is_killed_while_it_checks_can_be_begun_again(real, change):
    change(ONLY_A_BASELINE)
    study = subprocess.Popen([sys.executable, "-m", "cfg_distill.cli", "study", "study.yaml"])
    deadline = time.monotonic() + 120
    while not list(Path("out/logs").glob("*.log")):
        assert study.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    study.kill()
    study.wait()
    assert not Path("out/study.json").exists()
    assert main(["study", "study.yaml"]) == 0
    assert Path("out/front.json").is_file()


@pytest.mark.parametrize("strange", ["thesis.txt", "students", "logs"])
def test_the_files_of_others_stay_strange(place, strange):
    """Without a lock of a study, its logs are somebody else's; beside a lock, everything but logs and steps is."""
    out = place / "out"
    out.mkdir()
    if strange != "logs":
        (out / ".lock").touch()
        (out / "logs").mkdir()
    (out / strange).mkdir()
    with pytest.raises(ConfigError, match="holds files, but no study"):
        run_steps("study.yaml")


def _distinct(n: object) -> dict:
    return {"class_path": "cfg_distill.metrics.DistinctN", "init_args": {"n": n}}
