"""Evaluation against the same steps done by hand."""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_folder

from cfg_distill.errors import ConfigError, PartError
from cfg_distill.evaluation import System, evaluate
from cfg_distill.evaluation.chosen import conditioner_of, metrics_of
from cfg_distill.evaluation.system import pooled
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.metrics import DistinctN, Length
from cfg_distill.sampling import Codes, Sampling
from cfg_distill.sampling.samples import draw

PROMPTS = ["w0 w1", "w2", "w3 w4 w5", "w6", "w7"]
OLD_KEYS = {"name", "kind", "model", "temperature", "guidance", "samples", "seeds", "prompts", "axes", "values"}
SAMPLING = Sampling(samples=3, max_new_tokens=6)


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> CausalLM:
    return CausalLM(tiny_folder(tmp_path_factory.mktemp("tiny"))).load()


def run(generator: CausalLM, **settings) -> System:
    metrics = {"distinct": DistinctN(), "length": Length()}
    settings = {"guidance": None, "seeds": [0, 1], "batch_size": 2} | settings
    return evaluate(generator, PROMPTS, SAMPLING, metrics=metrics, **settings)


def test_values_are_those_of_metrics_on_drawn_samples(generator):
    system = run(generator, seeds=[7], batch_size=5)
    samples = draw(generator, PROMPTS, SAMPLING, None, 7)
    assert system.values["distinct"] == [pytest.approx(DistinctN().score(samples).tolist())]
    assert system.axes == {"distinct": "diversity", "length": "guard"}


def test_labels_are_drawn_per_sample_and_metrics_see_the_prompts(generator):
    codes, heard = Codes(values=3, template="{label} {prompt}", words=["w9", "w10", "w11"]), []
    system = run(generator, seeds=[7], batch_size=2, conditioner=codes, listen=heard.append)
    samples = draw(generator, PROMPTS, SAMPLING, None, 7, codes)
    assert system.values["distinct"] == [pytest.approx(DistinctN().score(samples).tolist())]
    assert [prompt for samples in heard for prompt in samples.asked] == PROMPTS
    labels_BG = torch.cat([samples.rollout.labels_BG for samples in heard])
    assert torch.equal(labels_BG, samples.rollout.labels_BG) and (labels_BG.sort(-1).values == torch.arange(3)).all()
    spec = {"class_path": "cfg_distill.sampling.Codes", "init_args": {"values": 3}}
    made = conditioner_of(spec, samples=6)
    assert isinstance(made, Codes) and made.values == 3 and conditioner_of(None, samples=6) is None
    with pytest.raises(ConfigError, match=r"Key `conditioner.init_args.values`: expected a divisor of"):
        conditioner_of(spec, samples=4)


OWN = '''
from cfg_distill.embedders import Embedder
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.metrics import DistinctN, TextMetric
from cfg_distill.sampling import Codes


class Words(TextMetric):
    axis = "quality"

    def __init__(self, k: int = 2, inner: Embedder | None = None):
        super().__init__()
        self.n = self.kk + 1

    def score_group(self, texts):
        return 1.0


class Holder(Words):
    def __init__(self, inner: TextMetric | None = None, k: int = 2):
        pass


class Refusing(Words):
    def __init__(self, k: int = 2):
        raise ConfigError(Problem("k", "expected 3."))


class Further(DistinctN):
    """Its __init__ is this package's."""


class Labels(Codes):
    def __init__(self, values: int = 3):
        super().__init__(values=values)
        self.n = int("three")
'''


def test_a_bug_in_the_init_of_ones_own_class_keeps_its_traceback(tmp_path, monkeypatch):
    """What is wrong in the file stays a message about its key."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    words = {"class_path": "own_parts.Words"}
    for spec in (words, {"class_path": "own_parts.Holder", "init_args": {"inner": words}}):
        with pytest.raises(
            PartError, match=r"^Key `mine`: Words raised AttributeError: 'Words' object has no .* 'kk'$"
        ) as e:
            metrics_of({"mine": spec})
        assert "self.n = self.kk + 1" in "".join(traceback.format_exception(e.value))
    with pytest.raises(PartError, match=r"^Key `conditioner`: Labels raised ValueError: ") as e:
        conditioner_of({"class_path": "own_parts.Labels"}, samples=6)
    assert 'int("three")' in "".join(traceback.format_exception(e.value))
    wrong = {
        r"mine.init_args.k`: expected a whole number": words | {"init_args": {"k": "two"}},
        r"mine.init_args.kk`": words | {"init_args": {"kk": 2}},
        r"mine.k`: expected 3": {"class_path": "own_parts.Refusing"},
        r"mine.init_args.n`": {"class_path": "own_parts.Further", "init_args": {"n": 0}},
        r"mine": {"class_path": "own_parts.Missing"},
    }
    for text, spec in wrong.items():
        with pytest.raises(ConfigError, match=text):
            metrics_of({"mine": spec})


def test_every_prompt_once_a_seed_and_seeds_differ(generator):
    calls, heard = [], []
    system = run(generator, progress=lambda done, total: calls.append((done, total)), listen=heard.append)
    assert np.asarray(system.values["length"]).shape == (2, 5)
    assert system.values["length"][0] != system.values["length"][1]
    assert calls == [(n, 6) for n in range(7)]
    assert [prompt for samples in heard for prompt in samples.prompts] == PROMPTS


def test_the_same_seeds_give_the_same_point(generator):
    torch.manual_seed(123)
    first = run(generator)
    torch.manual_seed(456)
    assert run(generator).values == first.values


def test_guidance_costs_two_passes_and_changes_the_samples(generator):
    plain, guided = run(generator), run(generator, guidance=Guidance(3.0))
    assert (plain.relative_cost, guided.relative_cost) == (1.0, 2.0)
    assert run(generator, guidance=Guidance(1.0)).values == plain.values
    assert guided.values != plain.values


def test_a_point_has_the_keys_of_front_json_and_survives_a_file(generator, tmp_path: Path):
    system = run(generator, name="base", kind="base")
    system.save(tmp_path / "deep" / "base.json")
    assert System.read(tmp_path / "deep" / "base.json") == system
    point = system.point()
    assert {"name", "kind", "quality", "diversity", "relative_cost", "samples", "seeds"} <= point.keys()
    interval = point["diversity"]["distinct"]
    assert interval.keys() == {"mean", "low", "high"}
    assert interval["low"] <= interval["mean"] <= interval["high"]
    assert interval["mean"] == pytest.approx(np.mean(system.values["distinct"]))
    assert point["quality"] == {}
    assert list(point["guards"]) == ["length"]
    assert point["missing"] == {} and point["training_seeds"] == []
    assert 0 < point["seconds"] < 10


def test_several_training_runs_are_one_system(generator, tmp_path: Path):
    first, second = run(generator, name="quality seed 0"), run(generator, guidance=Guidance(3.0))
    first.training_seeds, second.training_seeds, second.seconds = [0], [1], 3 * first.seconds
    both = pooled("quality", [first, second])
    assert both.name == "quality" and both.training_seeds == [0, 1]
    assert both.seconds == pytest.approx(2 * first.seconds)
    assert both.runs("distinct").shape == (2, 5, 2)  # training seeds, prompts, sampling seeds
    assert both.cells("distinct").shape == (5, 4)
    assert (both.runs("distinct")[1] == second.runs("distinct")[0]).all()
    assert both.interval("length").mean == pytest.approx(np.mean([first.values["length"], second.values["length"]]))
    both.save(tmp_path / "both.json")
    assert System.read(tmp_path / "both.json") == both


def test_a_file_of_version_0_1_is_read(generator, tmp_path: Path):
    """It knew no training seeds, no seconds and no filters."""
    system = run(generator)
    old = {key: value for key, value in asdict(system).items() if key in {*OLD_KEYS, "relative_cost", "knob"}}
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = System.read(tmp_path / "old.json")
    assert found.interval("length") == system.interval("length")
    assert (found.training_seeds, found.chain, found.seconds, found.min_p) == ([], "", None, 0.0)


def test_a_metric_that_is_nan_on_a_prompt_is_named(generator):
    system = run(generator)
    system.values["length"][1][2] = float("nan")
    system.values["distinct"] = [[float("nan")] * 5] * 2
    point = system.point()
    assert point["missing"] == {"length": 1, "distinct": 5}
    assert point["diversity"] == {}  # no mean of nothing
    assert json.loads(json.dumps(point, allow_nan=False)) == point
