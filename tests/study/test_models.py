"""``cfg-distill evaluate``: points for finished models, and what is wrong with its options."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import Headline, evaluate_models
from cfg_distill.generators import CausalLM
from cfg_distill.metrics import SampleMetric
from cfg_distill.study.check import systems_by_folder
from cfg_distill.study.config import Evaluation, SystemConfig, read_study
from cfg_distill.study.jobs import CheckEvaluation, Evaluate

SETTINGS = {"samples": 3, "max_new_tokens": 5, "batch_size": 2}


def test_points_of_every_temperature_and_scale(real, capsys):
    evaluate_models(["base"], "report.txt", out="ev", temperature=[1.0, 0.5], guidance=[1.0, 2.0], **SETTINGS)
    front = json.loads(Path("ev/front.json").read_text())
    assert [system["name"] for system in front["systems"]] == [
        *("base, T 1", "base, guidance 2, T 1", "base, T 0.5", "base, guidance 2, T 0.5")
    ]
    assert [system["relative_cost"] for system in front["systems"]] == [1.0, 2.0, 1.0, 2.0]
    assert {"self_bleu_diversity", "distinct_2"} == front["systems"][0]["diversity"].keys()
    table = Path("ev/table.txt").read_text()
    assert table in capsys.readouterr().out
    assert not Path("ev/front.png").exists()  # no quality metric: none can be chosen for any text
    with pytest.raises(ConfigError, match="--overwrite"):
        evaluate_models(["base"], "report.txt", out="ev", **SETTINGS)


def test_metrics_of_a_file_make_a_picture(real, monkeypatch):
    monkeypatch.syspath_prepend(str(real))
    Path("metrics.yaml").write_text(
        "words: {class_path: mine.Words}\ndistinct: {class_path: cfg_distill.metrics.DistinctN, init_args: {n: 1}}\n"
    )
    evaluate_models(["base"], "report.txt", out="ev", metrics="metrics.yaml", **SETTINGS)
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
    evaluate_models(models, "report.txt", out="ev", guidance=[1.0, 2.0], dtype="bfloat16", **SETTINGS)
    assert alive == [1, 1, 1]


def test_prompts_beyond_the_context_are_told_before_a_model_loads(real, monkeypatch):
    monkeypatch.setattr(CausalLM, "load", lambda self: 1 / 0)
    Path("report.txt").write_text("w5\n" + "w6 " * 60)
    with pytest.raises(
        ConfigError, match=r"Model `base`: Option `--max-new-tokens`: Prompt `w6 .* at most 4, but got 5"
    ):
        evaluate_models(["base"], "report.txt", **SETTINGS)


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
        evaluate_models(["nowhere/in/sight", "base"], "none.txt", seeds=[1, 1], guidance=[-1.0], samples=0)
    text = str(caught.value)
    assert "`nowhere/in/sight` does not exist" in text
    assert "Option `--prompts`" in text
    assert "Option `--seeds`" in text
    assert "guidance.scale`" in text
    assert "sampling.samples`" in text


@pytest.mark.parametrize("content", ["", "[1, 2]", "words: {class_path: mine.Wrods}"])
def test_metrics_that_cannot_be_read(real, content, monkeypatch):
    monkeypatch.syspath_prepend(str(real))
    Path("metrics.yaml").write_text(content)
    with pytest.raises(ConfigError, match="metrics"):
        evaluate_models(["base"], "report.txt", metrics="metrics.yaml", **SETTINGS)


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
        evaluate_models(["base"], "report.txt", **SETTINGS)
    metrics = {"words": {"class_path": "mine.Words"}}
    given = Evaluation("report.txt", metrics, Headline("words", "words"))
    with pytest.raises(InterruptedError):
        Evaluate("base", "model", SystemConfig("base"), given, "system.json", "samples").run(print)
    assert devices == [torch.device("meta")] * 2
