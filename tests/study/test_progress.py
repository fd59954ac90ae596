"""What a study shows of its progress: a share that never falls, the steps by name, a range where nothing was measured."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from cfg_distill.cli import main
from cfg_distill.files.logs import clock
from cfg_distill.study import run
from cfg_distill.study.display import Display
from cfg_distill.study.forecast import Forecast
from cfg_distill.study.processes import FitProcess
from cfg_distill.study.progress import WriteProgress
from cfg_distill.study.steps import Step


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The clock, which a test sets."""
    seconds = [0.0]
    monkeypatch.setattr("cfg_distill.study.forecast.time.monotonic", lambda: seconds[0])
    return seconds


def a_plan() -> list[Step]:
    fits = [Step("fit", "quality", [], [], effort=20.0), Step("fit", "diversity", [], [], ["fit quality"], effort=30.0)]
    evaluations = [Step("evaluate", f"system {n}", [], [], effort=10.0) for n in range(5)]
    return [*fits, *evaluations, Step("front", "", [], [], effort=1.0)]


def test_the_forecast_scales_guesses_by_what_was_measured(now):
    steps = [Step("evaluate", name, [], [], effort=effort) for name, effort in (("a", 10.0), ("b", 20.0), ("c", 20.0))]
    forecast = Forecast(steps, parallel=1)
    assert forecast.seconds_left() == pytest.approx(50)
    forecast.begin("evaluate a")
    now[0] = 30.0
    forecast.finish("evaluate a")  # three times the guess
    assert forecast.seconds_left() == pytest.approx(120)
    forecast.begin("evaluate b")
    now[0] = 34.0
    forecast.report("evaluate b", 0, 6)  # 4 s to load
    now[0] = 46.0
    forecast.report("evaluate b", 3, 6)  # 12 s for a half
    assert forecast.remaining() == pytest.approx({"evaluate b": 12, "evaluate c": 20 * (30 + 28) / (10 + 20)})
    now[0] = 50.0  # time goes on between two reports
    assert forecast.remaining()["evaluate b"] == pytest.approx(8)


def test_a_step_that_goes_on_is_measured_by_what_this_run_does(now):
    """Before, a fit that had three of its steps left made all others look forty times as short."""
    steps = [Step("fit", name, [], [], effort=100.0) for name in ("a", "b")]
    forecast = Forecast(steps, parallel=1)
    forecast.begin("fit a")
    now[0] = 10.0
    forecast.report("fit a", 90, 100)  # an earlier run's
    assert forecast.time_left() == ""
    now[0] = 60.0
    forecast.report("fit a", 95, 100)  # 10 s a step
    assert forecast.remaining() == pytest.approx({"fit a": 50, "fit b": 10 + 1000})
    now[0] = 110.0
    forecast.finish("fit a")
    assert forecast.remaining() == pytest.approx({"fit b": 1010})


def test_the_forecast_knows_what_waits_for_what():
    chain = [Step("fit", "a", [], [], effort=10.0), Step("fit", "b", [], [], needs=["fit a"], effort=10.0)]
    assert Forecast(chain, parallel=2).seconds_left() == pytest.approx(20)
    several = Forecast([*chain, Step("evaluate", "c", [], [], effort=60.0)], parallel=2)
    assert several.seconds_left() == pytest.approx(60)
    assert clock(245.2) == "4:05"


@pytest.mark.parametrize("seed", range(20))
def test_the_share_never_falls_however_wrong_the_guesses_are(now, seed):
    draw = random.Random(seed)
    steps = [replace(step, effort=10 ** draw.uniform(-2, 4)) for step in a_plan()]
    forecast = Forecast(steps, parallel=2)
    display = Display(forecast, Console(file=io.StringIO()))
    shown, shares = [0.0], [0.0]
    for step in steps:
        if draw.random() < 0.2:
            forecast.finish(step.label)  # done by an earlier run
        else:
            forecast.begin(step.label)
            for _ in range(10):  # some reports are of an earlier moment
                now[0] += 10 ** draw.uniform(-2, 3)
                forecast.report(step.label, draw.randrange(20), 20)
                display.show()
                shown.append(display.shown)
                shares.append(forecast.share())
            forecast.finish(step.label)
        display.show()
        shown.append(display.shown)
    assert shown == sorted(shown) and shares == sorted(shares)
    assert shown[-1] == pytest.approx(1.0)


def test_the_bar_waits_for_work_not_for_time(now):
    """Before, it rose to 62 % while the first fit had done nothing."""
    forecast = Forecast(a_plan(), parallel=1)
    display = Display(forecast, Console(file=io.StringIO()))
    forecast.begin("fit quality")
    now[0] = 90.0
    display.show()
    assert display.shown == 0.0
    forecast.report("fit quality", 10, 20)
    display.show()
    assert display.shown == pytest.approx(10 / 101)


def test_it_says_which_step_of_which_fit_and_what_follows(now):
    forecast = Forecast(a_plan(), parallel=1)
    assert forecast.doing() == ""
    forecast.begin("fit quality")
    assert forecast.doing() == "fit 1 of 2 quality, loading; then 1 fit, 5 evaluations"
    forecast.report("fit quality", 4, 20)
    assert forecast.doing() == "fit 1 of 2 quality, step 4/20; then 1 fit, 5 evaluations"
    forecast.finish("fit quality")
    forecast.begin("fit diversity")
    forecast.begin("evaluate system 1")
    forecast.report("evaluate system 1", 2, 3)
    assert (
        forecast.doing() == "fit 2 of 2 diversity, loading, evaluation 2 of 5 system 1, batch 2/3; then 4 evaluations"
    )
    for step in a_plan()[:-1]:
        forecast.finish(step.label)
    forecast.begin("front")
    assert forecast.doing() == "drawing the front"


def test_the_time_left_is_a_range_until_every_kind_was_measured(now):
    forecast = Forecast([step for step in a_plan() if step.kind != "front"], parallel=1)
    assert forecast.time_left() == ""  # a guess knows neither the model nor the machine
    forecast.begin("fit quality")
    now[0] = 40.0
    forecast.finish("fit quality")  # twice the guess: the other fit takes 60 s
    assert forecast.time_left() == "1:33 to 6:00 left"  # 60 s, and a third and three times of twice the 50 s
    forecast.begin("evaluate system 0")
    now[0] = 50.0
    forecast.finish("evaluate system 0")
    assert forecast.time_left() == "1:40 left"


def test_off_a_terminal_a_line_is_a_change(now):
    forecast, said = Forecast(a_plan(), parallel=1), io.StringIO()
    display = Display(forecast, Console(file=said, width=200))
    display.show()
    forecast.begin("fit quality")
    for done in range(1001):  # a thousand reports of one step
        now[0] += 1.0
        forecast.report("fit quality", done, 1000)
        display.show()
    lines = said.getvalue().splitlines()
    assert lines[0] == "study   0%: checking"
    assert lines[1] == "study   0%: fit 1 of 2 quality, step 0/1000; then 1 fit, 5 evaluations"
    assert re.match(r"study +0%, \d+:\d\d to [\d:]+ left: fit 1 of 2 quality, step 2\d/1000", lines[2])
    assert len(lines) == 4  # a fit of a fifth of the work: its begin, the first time left, one after a tenth


def test_on_a_terminal_a_bar_with_the_words_beneath(now):
    forecast, said = Forecast(a_plan(), parallel=1), io.StringIO()
    with Display(forecast, Console(file=said, width=80, force_terminal=True)) as display:
        forecast.begin("fit quality")
        forecast.report("fit quality", 4, 20)
        display.show()
        display.bar.refresh()
    assert "fit 1 of 2 quality, step 4/20; then 1 fit, 5 evaluations" in said.getvalue()


@pytest.mark.parametrize(
    ("max_steps", "estimated", "total"), [(12, math.inf, 12), (-1, 30, 30), (-1, math.inf, 0), (-1, -1, 0)]
)
def test_a_fit_says_how_many_steps_it_plans_where_it_knows(tmp_path, max_steps, estimated, total):
    """It does not where only time ends it: Lightning then estimates infinity, or -1 over a stream of data."""
    trainer: Any = SimpleNamespace(
        is_global_zero=True, max_steps=max_steps, estimated_stepping_batches=estimated, global_step=3
    )
    WriteProgress(str(tmp_path / "progress"), os.getppid()).on_train_batch_end(trainer)
    written = json.loads((tmp_path / "progress").read_text())
    assert (written["done"], written["total"]) == (3, total)


def test_a_recipe_with_a_bar_of_its_own_and_an_end_by_time_runs_within_a_study(real, monkeypatch):
    """Before, the study's own settings refused the bar, and the number of steps was infinite."""
    recipe = yaml.safe_load(Path("fit.yaml").read_text())
    recipe["trainer"] |= {"max_steps": -1, "max_time": {"seconds": 3}}
    recipe["trainer"]["callbacks"].append({"class_path": "lightning.pytorch.callbacks.RichProgressBar"})
    Path("fit.yaml").write_text(yaml.safe_dump(recipe))
    started: list[list[str]] = []
    with monkeypatch.context() as patch, Path("lock").open("w") as lock:
        patch.setattr(subprocess, "Popen", lambda words, **_: started.append(words))
        FitProcess(["fit", "--config", "fit.yaml"], Path("fit.log"), Path("progress"), 1, lock)
    monkeypatch.setattr(os, "getppid", os.getpid)  # the fit runs in this process, which stands for its study
    ((_, module, name, *words),) = started
    assert (module, name) == ("-m", "cfg_distill.cli") and main(words) == 0
    written = json.loads(Path("progress").read_text())
    assert written["finished"] and written["done"] > 0 and written["total"] == 0


@pytest.mark.slow
def test_the_share_of_a_real_study_never_falls_under_wrong_estimates(real, change, monkeypatch, capsys):
    change({"fits/quality/overrides": {"trainer.max_steps": 80}, "evaluation/seeds": [0]})
    change({"merges": {}, "claims": None, "fits/diversity": None, "baselines/base T 0.8": None})
    wrong = {"fit": 0.001, "export": 500.0, "evaluate": 2.0, "time": 70.0, "front": 1e4}
    plan, show, shown, said = run.plan, Display.show, [], []
    monkeypatch.setattr(run, "plan", lambda *given: [replace(s, effort=wrong[s.kind]) for s in plan(*given)])

    def recorded(display: Display) -> None:
        show(display)
        shown.append(display.shown)
        said.append(display.forecast.doing())

    monkeypatch.setattr(Display, "show", recorded)
    assert main(["study", "study.yaml"]) == 0
    assert Path("out/front.json").exists()
    assert len(set(shown)) > 4 and shown == sorted(shown)
    assert any(re.match(r"fit 1 of 1 quality, step \d+/80.*; then \d evaluation", each) for each in said), said
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("study ")]
    shares = [int(re.search(r"(\d+)%", line)[1]) for line in lines]
    assert shares == sorted(shares) and len(lines) <= 8  # checking, one for each of six steps, and one for a tenth
