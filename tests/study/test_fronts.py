"""The curve of students and merges against the baselines, and the files that the last step writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_folder

from cfg_distill.evaluation import Headline, System, height_above, timing
from cfg_distill.evaluation.table import notes_of
from cfg_distill.evaluation.timing import seconds_per_sample
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling
from cfg_distill.study.fronts import curve_of, front_lines, fronts_of, lines_of
from cfg_distill.study.jobs import DrawFront
from cfg_distill.study.parts import Claims

HEADLINE = Headline("q", "d", "b")
POINTS = {
    "base": ("base", 0.60, 0.70, None),
    "base T 0.6": ("base", 0.66, 0.55, None),
    "guidance 2": ("guidance", 0.70, 0.50, None),
    "diversity": ("student", 0.62, 0.75, 1.0),
    "quality": ("student", 0.70, 0.52, 0.0),
    "half": ("merge", 0.68, 0.66, 0.5),
}


def systems(seeds: int = 1, prompts: int = 24) -> list[System]:
    random = np.random.default_rng(0)
    found = []
    for name, (kind, quality, diversity, knob) in POINTS.items():
        trained = knob is not None
        runs = seeds if trained else 1
        values = {}
        for metric, mean in (("q", quality), ("d", diversity), ("b", diversity)):
            tables = (mean + random.normal(0, 0.01, (runs, 2, prompts))).tolist()
            values[metric] = tables if runs > 1 else tables[0]
        cost = 2.0 if kind == "guidance" else 1.0
        found.append(
            System(name, kind, "m", 0.8, cost, 4, [0, 1], [str(n) for n in range(prompts)], relative_cost=cost)  # type: ignore[arg-type]
        )
        found[-1].values, found[-1].knob = values, knob
        found[-1].axes = {"q": "quality", "d": "diversity", "b": "diversity"}
        found[-1].chain, found[-1].training_seeds = ("quality", list(range(runs))) if trained else ("", [])
    return found


def test_few_prompts_decide_nothing_about_a_front():
    for entry in fronts_of(systems(prompts=7), HEADLINE):
        verdicts = [point["verdict"] for point in entry["curve"]]
        verdicts += [entry[key]["verdict"] for key in ("mean_height", "dominated")]
        assert set(verdicts) == {"undecided"}


def test_a_front_for_each_measure_and_cost():
    everything = systems()
    entries = fronts_of(everything, HEADLINE)
    assert [(each["diversity"], each["cost"], each["baselines"]) for each in entries] == [
        ("d", "equal", ["base", "base T 0.6"]),
        ("d", "any", ["base", "base T 0.6", "guidance 2"]),
        ("b", "equal", ["base", "base T 0.6"]),
        ("b", "any", ["base", "base T 0.6", "guidance 2"]),
    ]
    # Two points make the front, and three the curve.
    assert entries[0]["mean_height"]["verdict"] == "undecided" and "verdict" not in entries[0]["hypervolume"]
    entry = entries[1]
    assert [(point["system"], point["knob"]) for point in entry["curve"]] == [
        ("quality", 0.0),
        ("half", 0.5),
        ("diversity", 1.0),
    ]
    assert [point["verdict"] for point in entry["curve"]][1:] == ["holds", "holds"]
    alone = height_above(everything[5], everything[:3], "q", "d")
    assert entry["curve"][1]["height"] == pytest.approx(alone._asdict())
    assert entry["mean_height"]["verdict"] == "holds" and entry["mean_height"]["mean"] > 0.03
    assert entry["dominated"].keys() == {"mean", "low", "high", "verdict"}
    assert entry["dominated"]["mean"] >= 2 / 3
    assert entry["hypervolume"]["reference"] == [0.0, 0.0] and entry["hypervolume"]["low"] > 0
    assert json.loads(json.dumps(entries, allow_nan=False)) == entries


def test_the_curve_is_of_one_temperature_in_the_order_of_the_knob():
    everything = systems()
    warm = systems()[5]
    warm.name, warm.temperature = "half T 1", 1.0
    assert [each.name for each in curve_of([*everything, warm])] == ["quality", "half", "diversity"]
    assert [each.name for each in curve_of([*everything, warm], 1.0)] == ["half T 1"]
    for each in everything:
        each.knob = None
    assert [each.name for each in curve_of(everything)] == ["diversity", "quality", "half"]
    assert fronts_of(everything[:3], HEADLINE) == []


def test_values_without_a_common_prompt_are_a_problem_and_no_crash():
    everything = systems()
    everything[5].values["d"] = [[float("nan")] * 24] * 2
    entry = fronts_of(everything, HEADLINE)[0]
    assert entry["missing"] == {"d": 24} and "has a value" in entry["problem"]
    assert "has a value" in front_lines(entry)


def test_what_an_interval_does_not_hold_is_said():
    assert notes_of(systems(seeds=3), "report") == []
    assert notes_of(systems(), "report") == ["One training seed: the intervals say nothing about another training run."]
    (note,) = notes_of(systems(seeds=2), "report")
    assert note.startswith("2 training seeds are fewer than the 3 that an interval needs")
    notes = notes_of(systems(seeds=3, prompts=5), "development")
    assert [note.split(":")[0] for note in notes] == [
        "These are development prompts",
        "5 prompts are fewer than the 8 that an interval needs",
    ]
    holed = systems(seeds=3)
    holed[0].values["q"][1][4] = float("nan")
    assert notes_of(holed, "report") == ["q is NaN on 1 of 24 prompts of base (`4`): its means leave them out."]
    for each in holed:
        each.values["d"] = np.where(np.arange(24) == 0, np.nan, each.runs("d").swapaxes(1, 2)).tolist()
    assert notes_of(holed, "report")[1:] == [
        "d is NaN on 1 of 24 prompts of every system (`0`): its means leave them out."
    ]
    holed[1].values["q"] = np.where(np.arange(24) < 5, np.nan, holed[1].runs("q").swapaxes(1, 2)).tolist()
    holed[2].values["q"] = np.full_like(holed[2].runs("q").swapaxes(1, 2), np.nan).tolist()
    told = notes_of(holed, "report")
    assert any("q is NaN on 5 of 24 prompts of" in note and "(`0`, `1`, `2`, ...)" in note for note in told)
    assert f"q is NaN on every prompt of {holed[2].name}: it has no mean there." in told


def test_the_last_step_pools_training_seeds_and_writes_everything(tmp_path: Path):
    files: dict[str, list[str]] = {}
    for each in systems(seeds=3):
        runs = each.runs("q").shape[0]
        for run in range(runs):
            values = {metric: each.runs(metric)[run].T.tolist() for metric in each.values}
            file = tmp_path / "systems" / (f"{each.name}/seed {run}.json" if runs > 1 else f"{each.name}.json")
            seeds = [run] if runs > 1 else each.training_seeds
            replace(each, values=values, training_seeds=seeds).save(file)
            files.setdefault(each.name, []).append(str(file))
    (tmp_path / "speed.json").write_text(
        '[{"system": "base", "relative_cost": 1.0, "rows": 4, "tokens": 64, "seconds": 0.5}]'
    )
    claims = Claims("base", "guidance 2", "quality", 0.03, "diversity", "half", {"q": ">= 0"})
    protocol = {"prompts": "report.txt", "stage": "report", "training_seeds": [0, 1, 2]}
    knobs = [knob for *_, knob in POINTS.values()]
    DrawFront(files, HEADLINE, claims, knobs, str(tmp_path), protocol, str(tmp_path / "speed.json")).run(print)
    front = json.loads((tmp_path / "front.json").read_text())
    assert front.keys() == {"systems", "claims", "choice", "hypervolume", "protocol", "notes", "fronts", "timing"}
    assert {each["name"]: each["training_seeds"] for each in front["systems"]}["half"] == [0, 1, 2]
    pooled = System.read(tmp_path / "systems" / "half.json")
    assert pooled.runs("d") == pytest.approx(systems(seeds=3)[5].runs("d"))
    assert [claim["verdict"] for claim in front["claims"]] == ["holds"] * 5
    table = (tmp_path / "table.txt").read_text()
    assert "training seeds 0, 1, 2" in table
    assert "HOLDS      C4a The merge reaches" in table
    assert (
        "Above the front of 2 baselines of equal cost, in q and d (each verdict for itself, not corrected for their"
        in table
    )
    assert "Seconds per sample of 64 tokens, one system at a time:\n  base  0.5000 at 4 rows" in table


def test_lines_of_nothing_are_nothing():
    assert lines_of({}) == ""


def test_seconds_are_those_of_samples_of_full_length(tmp_path: Path, monkeypatch):
    """Time that stands still but for a second per look: the seconds are counted by hand."""
    generator = CausalLM(tiny_folder(tmp_path)).load()
    generator.end_tokens = tuple(range(100))
    drawn: list[tuple[int, int, int]] = []
    clock = iter(range(1000))
    monkeypatch.setattr("cfg_distill.evaluation.timing.now", lambda generator: float(next(clock)))
    rollout = timing.rollout

    def counted(generator, prompts, sampling, guidance):
        found = rollout(generator, prompts, sampling, guidance)
        drawn.append((len(prompts), sampling.max_new_tokens, found.tokens_BGKT.shape[-1]))
        return found

    monkeypatch.setattr(timing, "rollout", counted)
    found = seconds_per_sample(generator, ["w0 w1", "w2"], Sampling(samples=5, max_new_tokens=6), Guidance(2.0), [1, 3])
    # Every token ends a sample here, and yet all six are decoded: a sample that ends early must not look fast, nor slow.
    assert [each[:2] for each in drawn] == [(1, 4), (1, 6), (1, 6), (1, 6), (3, 4), (3, 6), (3, 6), (3, 6)]
    assert [longest for _, tokens, longest in drawn if tokens == 6] == [6] * 6
    assert found == [{"rows": 1, "tokens": 6, "seconds": 1.0}, {"rows": 3, "tokens": 6, "seconds": 1 / 3}]
