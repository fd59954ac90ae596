"""Evaluation against the same steps done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_folder

from cfg_distill.evaluation import System, evaluate
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.metrics import DistinctN, Length
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw

PROMPTS = ["w0 w1", "w2", "w3 w4 w5", "w6", "w7"]
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
    samples = draw(generator, PROMPTS, SAMPLING, None, 7 * 1_000_003)
    assert system.values["distinct"] == [pytest.approx(DistinctN().score(samples).tolist())]
    assert system.axes == {"distinct": "diversity", "length": "guard"}


def test_every_prompt_once_a_seed_and_seeds_differ(generator):
    calls, heard = [], []
    system = run(generator, progress=lambda done, total: calls.append((done, total)), listen=heard.append)
    assert np.asarray(system.values["length"]).shape == (2, 5)
    assert system.values["length"][0] != system.values["length"][1]
    assert calls == [(n, 6) for n in range(1, 7)]
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
