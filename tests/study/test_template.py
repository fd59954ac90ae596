"""A baseline that asks for variety: a template around every prompt, which the model reads and no metric."""

from __future__ import annotations

from pathlib import Path

import torch
from made_study import line
from tiny import tiny_folder

from cfg_distill.evaluation.front import swept
from cfg_distill.evaluation.measure import evaluate
from cfg_distill.generators import CausalLM, Prompt
from cfg_distill.metrics.base import SampleMetric
from cfg_distill.report.drawing import front_panel
from cfg_distill.sampling import Sampling, draw
from cfg_distill.study.check import problems_of
from cfg_distill.study.checking import systems_by_folder
from cfg_distill.study.config import load_study
from cfg_distill.study.record import changes, record_of
from cfg_distill.study.steps import plan

TEMPLATE = "w0 {prompt} w1"


class Kept(SampleMetric):
    """Keeps what it is shown."""

    axis = "quality"

    def score(self, samples):
        self.seen = samples
        return torch.zeros(len(samples.prompts))


def test_the_model_reads_the_template_and_metrics_the_prompt(tmp_path: Path):
    model = CausalLM(tiny_folder(tmp_path)).load()
    sampling, metric, heard = Sampling(samples=2, max_new_tokens=6), Kept(), []
    prompts = ["w5", Prompt("w6 w7")]
    system = evaluate(model, prompts, sampling, None, {"kept": metric}, listen=heard.append, template=TEMPLATE)
    assert system.prompts == ["w5", "w6 w7"] and system.point()["prompt"] == TEMPLATE
    assert metric.seen.outputs == draw(model, ["w0 w5 w1", "w0 w6 w7 w1"], sampling, None, 0).outputs
    assert metric.seen.outputs != draw(model, prompts, sampling, None, 0).outputs
    assert metric.seen.prompts == ["w5", "w6 w7"] and metric.seen.asked == prompts
    assert heard[0].prompts == ["w5", "w6 w7"]


def test_a_baseline_of_a_study_takes_a_template(place, change):
    before = load_study("study.yaml")[0]
    evaluated = {step.label: step.config for step in plan(before, Path("out")) if step.kind == "evaluate"}
    study = load_study(change({"baselines/varied": {"model": "base", "prompt": TEMPLATE}}))[0]
    assert problems_of(study) == [] and study.kind("varied") == "base"
    assert changes(record_of(before), record_of(study)) == []
    after = {step.label: step for step in plan(study, Path("out")) if step.kind == "evaluate"}
    assert all(after[label].config == config for label, config in evaluated.items())  # nothing is sampled anew
    assert after["evaluate varied"].work.system.prompt == TEMPLATE
    assert TEMPLATE in [system.prompt for system in systems_by_folder(study)]  # so that its length is checked
    study = load_study(change({"baselines/varied/prompt": "Be surprising."}))[0]
    (problem,) = problems_of(study)
    assert problem.path == "baselines.varied.prompt" and "`{prompt}`" in problem.text


def test_what_is_more_than_temperature_and_guidance_is_on_no_sweep():
    points = [system.point() for system in line()]
    for name, key, value in (("varied", "prompt", TEMPLATE), ("tuned", "model", "sft"), ("top", "top_p", 0.9)):
        points.append(points[0] | {"name": name, "temperature": 0.4, key: value})
    points.append(points[0] | {"name": "cool", "temperature": 0.4})
    assert [point["name"] for point in swept(points)] == ["base", "guidance 2", "cool"]
    panel = front_panel(points, ("quality", "diversity"), ["base"], [], [])
    assert [len(corners) for look, corners in panel.lines if look == "base"] == [2]
    assert {dot.name for dot in panel.dots if dot.quiet} == {"varied", "tuned", "top"}
