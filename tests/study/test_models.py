"""``cfg-distill evaluate``: points for finished models, and what is wrong with its options."""

from __future__ import annotations

import gc
import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_study import read_study

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import EvaluateRequest, Headline, System, evaluate_request
from cfg_distill.evaluation.front import swept
from cfg_distill.evaluation.points import points_of
from cfg_distill.generators import CausalLM, Guidance
from cfg_distill.metrics import SampleMetric
from cfg_distill.sampling import Sampling, Seeds, draw
from cfg_distill.study.check import problems_of
from cfg_distill.study.checking import CheckEvaluation, systems_by_folder
from cfg_distill.study.config import Evaluation, SystemConfig
from cfg_distill.study.jobs import Evaluate, decoded, encoded
from cfg_distill.study.sampled import guidance_of
from cfg_distill.study.steps import plan

SETTINGS = {"samples": 3, "max_new_tokens": 5, "batch_size": 2}


def test_points_of_every_temperature_and_scale(real, capsys):
    request = EvaluateRequest(["base"], "report.txt", out="ev", temperature=[1.0, 0.5], guidance=[1.0, 2.0], **SETTINGS)
    returned = evaluate_request(request)
    front = json.loads(Path("ev/front.json").read_text())
    assert [system["name"] for system in front["systems"]] == [
        *("base, T 1", "base, guidance 2, T 1", "base, T 0.5", "base, guidance 2, T 0.5")
    ]
    assert [system["relative_cost"] for system in front["systems"]] == [1.0, 2.0, 1.0, 2.0]
    assert {"self_bleu_diversity", "distinct_2"} == front["systems"][0]["diversity"].keys()
    assert front["notes"] == ["3 prompts are fewer than the 8 that an interval needs: it covers less than it says."]
    table = Path("ev/table.txt").read_text()
    assert front["notes"][0] in table
    assert table == returned
    lines = [line.split(", 0:")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("evaluating ")]
    assert lines[:3] == ["evaluating base, T 1 (1 of 4)"] * 2 + ["evaluating base, guidance 2, T 1 (2 of 4)"]
    assert not Path("ev/front.png").exists()  # no quality metric: none can be chosen for any text
    with pytest.raises(ConfigError, match="Key `out`: expected a new folder, but `ev` exists"):
        evaluate_request(EvaluateRequest(["base"], "report.txt", out="ev", **SETTINGS))


def test_metrics_of_a_file_make_a_picture(real, monkeypatch):
    monkeypatch.syspath_prepend(str(real))
    Path("metrics.yaml").write_text(
        "words: {class_path: mine.Words}\ndistinct: {class_path: cfg_distill.metrics.DistinctN, init_args: {n: 1}}\n"
    )
    evaluate_request(EvaluateRequest(["base"], "report.txt", out="ev", metrics="metrics.yaml", **SETTINGS))
    assert Path("ev/front.png").exists()
    assert json.loads(Path("ev/front.json").read_text())["systems"][0]["quality"].keys() == {"words"}


def test_one_model_is_in_memory_at_a_time_in_the_dtype_that_was_asked_for(real, monkeypatch):
    for name in ("second", "third"):
        shutil.copytree("base", name)
    load, networks, alive = CausalLM.load, [], []

    def loaded(self):
        known = hasattr(self, "model")
        result = load(self)
        if not known:
            assert {weight.dtype for weight in self.model.parameters()} == {torch.bfloat16}
            networks.append(weakref.ref(self.model))
            gc.collect()
            alive.append(sum(network() is not None for network in networks))
        return result

    monkeypatch.setattr(CausalLM, "load", loaded)
    models = ["base", "second", "third"]
    evaluate_request(EvaluateRequest(models, "report.txt", out="ev", guidance=[1.0, 2.0], dtype="bfloat16", **SETTINGS))
    assert alive == [1, 1, 1]


def test_prompts_beyond_the_context_are_told_before_a_model_loads(real, monkeypatch):
    monkeypatch.setattr(CausalLM, "load", lambda self: 1 / 0)
    Path("report.txt").write_text("w5\n" + "w6 " * 60)
    with pytest.raises(ConfigError, match=r"Key `max_new_tokens`: model `base`: Prompt `w6 .* at most 4, but got 5"):
        evaluate_request(EvaluateRequest(["base"], "report.txt", **SETTINGS))


def test_a_study_tells_of_them_before_its_fits(real, change):
    study = read_study(change({"baselines/guidance 2/negative": "w1 " * 59, "baselines/guidance 2/guidance": 2.0}))
    systems = systems_by_folder(study)
    assert [(system.model, system.guidance, system.negative) for system in systems] == [
        ("base", 1.0, None),  # the students' fits begin with it, too
        ("base", 2.0, "w1 " * 59),
    ]
    assert systems_by_folder(replace(study, baselines={})) == [replace(systems[0], temperature=None)]
    given = replace(study.evaluation, metrics={})
    check = CheckEvaluation(given, ["base"], systems)
    with pytest.raises(
        ConfigError, match=r"Model `base`: Key `evaluation.max_new_tokens`: Negative prompt `w1 .* most 5"
    ):
        check.run(print)
    replace(check, evaluation=replace(given, max_new_tokens=5)).run(print)


def test_all_problems_at_once(place):
    with pytest.raises(ConfigError) as caught:
        evaluate_request(
            EvaluateRequest(["nowhere/in/sight", "base"], "none.txt", seeds=[1, 1], guidance=[-1.0], samples=0)
        )
    text = str(caught.value)
    assert "`nowhere/in/sight` does not exist" in text
    assert "Key `prompts`" in text
    assert "Key `seeds`" in text
    assert "Key `guidance`" in text
    assert "Option" not in text and "--" not in text


def said(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main(["evaluate", "--prompts", "report.txt", *words]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_the_command_names_its_own_options_and_no_others(real, capsys):
    words = [
        "--guidance=-1",
        "--samples=0",
        "--temperature=-2",
        "--batch-size=0",
        "--max-new-tokens=70",
        "--seeds",
        "1",
        "1",
    ]
    message = said(capsys, "--model", "base", *words)
    assert "6 problems" in message
    for option in ("guidance", "samples", "temperature", "batch-size", "max-new-tokens", "seeds"):
        assert f"Option `--{option}`: expected" in message
    known = set(re.findall(r"--[\w-]+", evaluate_help(capsys)))
    assert set(re.findall(r"--[\w-]+", message)) <= known and "model." not in message and "Key" not in message


def evaluate_help(capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ["--samples=1"],
            "Option `--samples`: expected at least 2, since `self_bleu_diversity` compares the samples of one",
        ),
        (
            ["--guidance", "1", "nan"],
            "Option `--guidance`: expected a number from 0 to 1000 (1 is no guidance), but got nan",
        ),
        (["--guidance=inf"], "Option `--guidance`: expected a number from 0 to 1000 (1 is no guidance), but got inf"),
        (
            ["--guidance=1e308"],
            "Option `--guidance`: expected a number from 0 to 1000 (1 is no guidance), but got 1e+308",
        ),
        (["--temperature", "1", "nan"], "Option `--temperature`: expected a finite number of at least 0, but got nan"),
        (["--temperature=inf"], "Option `--temperature`: expected a finite number of at least 0, but got inf"),
    ],
)
def test_numbers_that_no_sample_has_are_refused_before_a_model_loads(real, capsys, monkeypatch, words, wanted):
    monkeypatch.setattr(CausalLM, "load", lambda self: pytest.fail("loaded"))
    assert wanted in said(capsys, "--model", "base", *words)


def test_a_file_is_no_folder_for_results(real, capsys):
    Path("taken").write_text("mine")
    assert "Option `--out`: expected a folder, but `taken` is a file" in said(
        capsys, "--model", "base", "--out", "taken"
    )


@pytest.mark.parametrize("content", ["", "[1, 2]", "words: {class_path: mine.Wrods}"])
def test_metrics_that_cannot_be_read(real, content, monkeypatch):
    monkeypatch.syspath_prepend(str(real))
    Path("metrics.yaml").write_text(content)
    with pytest.raises(ConfigError, match="metrics"):
        evaluate_request(EvaluateRequest(["base"], "report.txt", metrics="metrics.yaml", **SETTINGS))


def test_metrics_load_on_the_device_that_they_run_on(real, monkeypatch):
    """Loading may embed a folder of sound, which takes minutes on a CPU."""
    monkeypatch.syspath_prepend(str(real))
    devices = []

    def load(self):
        devices.append(self.device)
        raise InterruptedError

    monkeypatch.setattr(SampleMetric, "load", load)
    monkeypatch.setattr("cfg_distill.generators.device", lambda: torch.device("meta"))
    with pytest.raises(InterruptedError):
        evaluate_request(EvaluateRequest(["base"], "report.txt", **SETTINGS))
    metrics = {"words": {"class_path": "mine.Words"}}
    given = Evaluation("report.txt", metrics, Headline("words", "words"))
    with pytest.raises(InterruptedError):
        Evaluate("base", "model", SystemConfig("base"), given, "system.json", "samples").run(print)
    assert devices == [torch.device("meta")] * 2


def test_guidance_may_move_over_the_positions(real, change, monkeypatch):
    """Sampled as the schedule of a recipe says, at the cost of guidance; and no sweep of scales, no ``guided base``."""
    monkeypatch.syspath_prepend(str(real))
    moved = {"model": "base", "guidance": 3.0, "schedule": {"kind": "step", "step_at": 0.5}}
    study = read_study(change({"baselines/moved": moved, "baselines/there": moved | {"schedule": {"positions": 4}}}))
    steps = {step.label: step for step in plan(study, real / "out")}
    job = decoded(encoded(steps["evaluate moved"].work))
    assert job == steps["evaluate moved"].work and job.kind == "guidance"
    assert guidance_of(job.system, 6) == Guidance(1, schedule="step", final_scale=3, positions=6)
    assert guidance_of(study.baselines["there"], 6).positions == 4
    job.run(lambda done, of: None)
    system = System.read(Path(job.file))
    assert (system.guidance, system.relative_cost, system.schedule["kind"]) == (3.0, 2.0, "step")
    prompts, sampling = ["w5", "w6 w7", "w8 w9"], Sampling(3, 6)
    base, expected = CausalLM("base").load(), {}
    for name, guidance in {"moved": guidance_of(job.system, 6), "still": Guidance(3.0)}.items():
        drawn = [draw(base, prompts, sampling, guidance, Seeds((seed,), range(3))) for seed in job.evaluation.seeds]
        expected[name] = [[len(" ".join(texts).split()) / 3 / 6 for texts in grouped(each)] for each in drawn]
    assert system.values["words"] == [pytest.approx(row) for row in expected["moved"]] != expected["still"]
    points = [each | {"kind": "guidance", "model": "base"} for each in ({"schedule": None}, {"schedule": {}})]
    assert swept(points) == points[:1]


def grouped(samples):
    """The texts of each prompt."""
    size = len(samples.outputs) // len(samples.prompts)
    return [samples.outputs[start : start + size] for start in range(0, len(samples.outputs), size)]


def test_a_schedule_that_cannot_be_is_told_before_the_fits(real, change):
    wrong = {"kind": "power", "power": -1, "first": -2}
    study = read_study(change({"baselines/moved": {"model": "base", "guidance": 3.0, "schedule": wrong}}))
    check = CheckEvaluation(replace(study.evaluation, metrics={}), [], systems_by_folder(study))
    with pytest.raises(ConfigError) as found:
        check.run(print)
    assert [str(each).partition(":")[2][:50] for each in found.value.problems] == [
        " Key `schedule.first`: expected a number from 0 to",
        " Key `schedule.power`: expected a number above 0, ",
    ]
    study = read_study(change({"baselines/moved": {"model": "base", "schedule": {}}}))
    (problem,) = problems_of(study)
    assert "baselines.moved.guidance" in str(problem) and "expected a scale that the schedule moves to" in str(problem)


def test_equal_points_are_drawn_once() -> None:
    assert [(each.model, each.guidance) for each in points_of(["a", "a@2", "a"], [1.0, 1.0], [1.0, 2.0, 2.0])] == [
        ("a", 1.0),
        ("a", 2.0),
    ]
