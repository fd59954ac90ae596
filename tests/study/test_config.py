"""The study file: every problem at once, in one message each, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_study import read_study

from cfg_distill.errors import ConfigError
from cfg_distill.recipe.overrides import sorted_words
from cfg_distill.study import run, run_steps
from cfg_distill.study.check import problems_of, without_echoes
from cfg_distill.study.checking import jobs_of_checks
from cfg_distill.study.config import Merge, load_study
from cfg_distill.study.parts import SystemConfig


def test_a_right_file_has_no_problem(place):
    assert problems_of(read_study("study.yaml")) == []


def test_the_shipped_quick_start_is_right():
    study = read_study("recipes/quickstart.yaml")
    assert problems_of(study) == []
    assert list(study.fits) == ["quality", "diversity"]
    assert [merge.weights[1] for merge in study.merges.values()] == [0.25, 0.5, 0.75]
    base = {point.guidance for point in study.baselines.values() if point.model == "tunes:base"}
    assert {1.0, 1.5, 2.0, 3.0} <= base


def test_keys_and_types_are_reported_together(change):
    path = change({"fit": {}, "fits/quality/confg": "x", "evaluation/samples": "many", "evaluation/prompts": None})
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "Key `fit`: expected a known key" in text
    assert "Did you mean `fits`?" in text
    assert "Key `fits.quality.confg`" in text
    assert "Did you mean `config`?" in text
    assert "Key `evaluation.samples`: expected a whole number, but got 'many'." in text
    assert "Key `evaluation.prompts`: expected, but the study file has none." in text


def test_what_names_mean_is_reported_together(change):
    path = change(
        {
            "fits/quality/config": "missing.yaml",
            "fits/diversity/start": "qualty",
            "merges/half/models": ["quality", "divrsity"],
            "merges/half/weights": [0.5, 0.6],
            "baselines/half": {"model": "base"},
            "baselines/guidance 2/guidance": -1.0,
            "evaluation/headline/quality": "word",
            "evaluation/seeds": [1, 1],
            "claims/merge": "hlaf",
            "claims/guards": {"lenght": "< 1", "length": "below 1"},
        }
    )
    found = problems_of(read_study(path))
    text = "\n".join(map(str, found))
    assert "Key `fits.quality.config`: expected a recipe, but `missing.yaml` does not exist." in text
    assert "Key `fits.diversity.start`" in text
    assert "Did you mean `quality`?" in text
    assert "Key `merges.half.models`" in text
    assert "Did you mean `diversity`?" in text
    assert "Key `merges.half.weights`: expected a sum of 1, but 0.5 + 0.6 = 1.1." in text
    assert "Key `baselines.half`: the name is taken." in text
    assert "Key `baselines.guidance 2.guidance`: expected a number from 0 to 1000" in text
    assert "Did you mean `words`?" in text
    assert "Key `evaluation.seeds`: expected one or more different numbers" in text
    assert "Did you mean `half`?" in text
    assert "Key `claims.guards.lenght`: expected a name under `metrics`" in text
    assert "Did you mean `length`?" in text
    assert "Key `claims.guards.length`: expected a bound such as `< 0.02`" in text
    assert len(found) == 11


def test_an_independent_measure_is_no_reward(change):
    changes = {"evaluation/headline/independent": "distinct"}
    (problem,) = problems_of(read_study(change(changes)))
    assert str(problem).startswith("Key `evaluation.headline.independent`: expected another measure than the diversity")
    # The reward of the shipped study multiplies the distances under phrases and figures.
    shipped = read_study("recipes/tunes/study.yaml")
    assert problems_of(shipped) == []
    headline = replace(shipped.evaluation.headline, independent="figures_diversity")
    paid = replace(shipped, evaluation=replace(shipped.evaluation, headline=headline))
    (problem,) = problems_of(paid)
    assert "a reward of fits.diversity has the embedder of `figures_diversity`" in str(problem)
    assert problems_of(replace(paid, claims=None)) == []


def test_a_fit_cannot_start_from_a_later_one(change):
    (problem,) = problems_of(read_study(change({"fits/quality/start": "diversity"})))
    assert str(problem).startswith(
        "Key `fits.quality.start`: expected a model folder or a fit or merge named further up"
    )


def test_metrics_may_stand_in_a_file_of_their_own(change, place):
    written = read_study("study.yaml")
    (place / "metrics.yaml").write_text(yaml.safe_dump(written.evaluation.metrics))
    assert read_study(change({"evaluation/metrics": "metrics.yaml"})) == written


def test_a_missing_or_broken_file_of_metrics(change, place):
    (place / "metrics.yaml").write_text("words: [1,")
    (place / "empty.yaml").write_text("")
    for path, said in (
        ("metrisc.yaml", "does not exist. Did you mean `metrics.yaml`?"),
        ("metrics.yaml", "expected YAML"),
        (".", "is a folder"),
        ("empty.yaml", "it is empty"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_study(change({"evaluation/metrics": path}))
        (problem,) = caught.value.problems
        assert problem.path == "evaluation.metrics"
        assert said in problem.text
        study, found = load_study("study.yaml")
        assert without_echoes(found, problems_of(study)) == [problem]  # no word on the names that the file would hold


def test_an_evaluation_without_metrics(change):
    change({"evaluation/metrics": {}, "claims/guards": {"length": "< 3"}})
    (problem,) = problems_of(read_study("study.yaml"))
    assert (
        str(problem)
        == "Key `evaluation.metrics`: expected metrics, name -> class_path and init_args, but there is none."
    )


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just text"])
def test_a_file_that_is_no_mapping(place, content):
    (place / "study.yaml").write_text(content)
    with pytest.raises(ConfigError, match="expected keys and values"):
        read_study("study.yaml")


def test_a_missing_file_and_broken_yaml(place):
    with pytest.raises(ConfigError, match=r"`no.yaml` does not exist"):
        read_study("no.yaml")
    (place / "study.yaml").write_text("a: [1,")
    with pytest.raises(ConfigError, match="expected YAML"):
        read_study("study.yaml")


def test_prompts_that_were_trained_on_are_not_held_out(place):
    (place / "report.txt").write_text("w5\n W2 \n")
    problems = problems_of(read_study("study.yaml"))
    assert len(problems) == 2  # of both fits
    assert "1 of them are in `data.train` of fits.quality: 'w2'" in str(problems[0])


def test_prompts_that_were_tuned_on_are_no_evidence(change, place):
    (place / "development.txt").write_text("w9 w9\n W5 \n")
    (problem,) = problems_of(read_study(change({"evaluation/development": "development.txt"})))
    assert str(problem).startswith(
        "Key `evaluation.prompts`: expected prompts that no choice was made on, but 1 of them are in `evaluation.development`"
    )
    (place / "development.txt").write_text("w2\n")
    text = "\n".join(map(str, problems_of(read_study("study.yaml"))))
    assert (
        "Key `evaluation.development`: expected held-out prompts, but 1 of them are in `data.train` of fits.quality"
        in text
    )
    (place / "fit.yaml").write_text(
        (place / "fit.yaml").read_text().replace("train: train.txt", "train: train.txt, validation: v.txt")
    )
    (place / "v.txt").write_text("w9\n")
    (place / "development.txt").write_text("w9\n")  # what a fit validates on may be chosen on as well
    assert problems_of(read_study("study.yaml")) == []


def test_the_stage_decides_which_prompts_are_sampled(change, place):
    (place / "development.txt").write_text("w9 w9\n")
    study = read_study(change({"evaluation/development": "development.txt", "evaluation/stage": "development"}))
    assert problems_of(study) == [] and study.evaluation.sampled == "development.txt"
    (problem,) = problems_of(read_study(change({"evaluation/development": ""})))
    assert str(problem).startswith("Key `evaluation.development`: expected a file, since `evaluation.stage` samples it")


SWEEP = {"model": "base", "temperature": [0.8, 1.0], "guidance": [1.0, 2.0], "top_p": [0.9], "min_p": [0.1]}


def test_a_sweep_makes_baselines(change):
    study = read_study(change({"sweeps": {"plain": SWEEP}}))
    assert problems_of(study) == []
    swept = [name for name in study.all_systems() if name.startswith("plain")]
    # T 0.8 and T 1 without guidance, and guidance 2 at T 1, have names already.
    assert swept == ["plain guidance 2 T 0.8", "plain top-p 0.9", "plain min-p 0.1"]
    assert [study.kind(name) for name in swept] == ["guidance", "base", "base"]
    systems = study.all_systems()
    assert (systems[swept[0]].guidance, systems[swept[0]].temperature) == (2.0, 0.8)
    assert (systems[swept[1]].top_p, systems[swept[2]].min_p) == (0.9, 0.1)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"model": "base"}, "expected temperature, guidance, top_p or min_p, but it has none"),
        (SWEEP | {"min_p": [2.0]}, "expected a number from 0 (keeps all) to 1, but got 2.0"),
        (SWEEP | {"top_p": [0.0]}, "expected a number above 0 and up to 1 (1 keeps all), but got 0.0"),
        (SWEEP | {"guidance": [-1.0]}, "expected a number from 0 to 1000 (1 is no guidance), but got -1"),
    ],
)
def test_what_is_wrong_with_a_sweep(change, sweep, said):
    problems = problems_of(read_study(change({"sweeps": {"plain": sweep}})))
    assert problems and all(
        str(problem).startswith("Key `sweeps.plain") and said in str(problem) for problem in problems
    )


def test_a_sweep_whose_names_are_taken(change):
    sweep = {"model": "base", "temperature": [0.7]}
    (problem,) = problems_of(read_study(change({"sweeps": {"base": sweep}, "baselines/base T 0.7": {"model": "base"}})))
    assert str(problem) == "Key `sweeps.base`: makes the system `base T 0.7`, and the name is taken. Rename the sweep."


def test_training_seeds_that_cannot_be(change, place):
    for seeds in ([1, 1], [-1], [2**32]):
        (problem,) = problems_of(read_study(change({"training_seeds": seeds})))
        assert (
            str(problem)
            == f"Key `training_seeds`: expected different whole numbers from 0 to 4294967295, but got {seeds}."
        )
    given = change({"training_seeds": [0, 1], "systems": {"half seed 1": {"model": "half"}}})
    baseline = replace(read_study(given), systems={}, baselines={"quality seed 0": SystemConfig("model")})
    assert "Key `baselines`: `quality seed 0` ends like the folders" in "".join(map(str, problems_of(baseline)))
    problems = problems_of(read_study(given))
    assert [str(problem) for problem in problems] == [
        "Key `systems`: `half seed 1` ends like the folders of training seeds. Choose another name."
    ]
    change({"systems": None})
    (place / "fit.yaml").write_text((place / "fit.yaml").read_text().replace("model:\n", "model:\n  seed: 4\n", 1))
    problems = problems_of(read_study("study.yaml"))
    assert len(problems) == 2
    assert str(problems[0]).startswith("Key `fits.quality`: its recipe sets `model.seed`, so the training seeds")


def test_offsets_that_cannot_be(change):
    def said(offset: int, seeds: list[int]) -> list[str]:
        fit = {"config": "fit.yaml", "seed_offset": offset}
        return [str(each) for each in problems_of(read_study(change({"training_seeds": seeds, "fits/again": fit})))]

    key = "Key `fits.again.seed_offset`"
    assert said(1000, [0, 1]) == []
    assert said(0, [0, 1]) == [f"{key}: expected another number than 0, with which this is the same fit as `quality`."]
    text = "expected a number that leads to no seed of another fit, but got 1 for [0, 1]. Try 1000 or more."
    assert said(1, [0, 1]) == [f"{key}: {text}"]
    change({"fits/more": {"config": "fit.yaml", "seed_offset": 999}})
    assert said(1000, [0, 1]) == [f"{key}: {text.replace('got 1', 'got 1000')}"]
    change({"fits/more": None})
    text = "expected training seeds from 0 to 4294967295 with it, but got -1 for [0, 2]."
    assert said(-1, [0, 2]) == [f"{key}: {text}"]
    assert said(5, []) == [f"{key}: it is added to the training seeds, but `training_seeds` names none. Name one."]


def test_a_fit_that_a_baseline_samples_is_a_rival(change):
    study = read_study(change({"fits/imitation": {"config": "fit.yaml"}, "baselines/tuned": {"model": "imitation"}}))
    assert problems_of(study) == []
    assert "imitation" not in study.all_systems()
    assert study.kind("tuned") == "base"


def test_chains_of_training(change):
    study = read_study(
        change(
            {
                "fits/alone": {"config": "fit.yaml"},
                "merges/folders": {"models": ["base", "base"], "weights": [0.5, 0.5]},
            }
        )
    )
    chains = {name: study.chain(name) for name in ("quality", "diversity", "half", "alone", "folders", "base")}
    assert chains == {
        "quality": "quality",
        "diversity": "quality",
        "half": "quality",
        "alone": "alone",
        "folders": "",
        "base": "",
    }


def test_overrides_reach_recipe_and_command(change):
    overrides = {"trainer.max_steps": 3, "data.shuffle": False, "model.start": "x"}
    fit = read_study(change({"fits/quality/overrides": overrides})).fits["quality"]
    assert (fit.recipe.at("trainer.max_steps"), fit.recipe.at("trainer.devices")) == (3, 1)
    assert fit.words == [
        *("fit", "--config", "fit.yaml", "--trainer.max_steps=3", "--data.shuffle=false", "--model.start=x")
    ]


def test_text_that_looks_like_a_list_stays_text_on_the_command_line(change):
    fit = read_study(change({"fits/quality/overrides": {"model.guidance.negative": "[a sad air]"}})).fits["quality"]
    assert fit.words[-1] == '--model.guidance.negative="[a sad air]"'
    assert sorted_words(fit.words[3:]).overrides[0].value == fit.recipe.at("model.guidance.negative") == "[a sad air]"


def test_the_members_of_a_list_are_named(change):
    _, (problem,) = load_study(change({"evaluation/seeds": [0.5]}))
    assert str(problem) == "Key `evaluation.seeds`: expected a list of whole numbers, but got [0.5]."


def test_an_empty_section_is_told(change):
    file = Path(change({}))
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"merges": None}))
    found = [str(each) for each in load_study(file)[1]]
    assert "Key `merges`: expected names with a description each, but it is empty. Remove the key." in found


def test_kinds_and_knobs(place):
    study = read_study("study.yaml")
    kinds = {name: study.kind(name) for name in study.all_systems()}
    assert list(kinds.values()) == ["base", "base", "guidance", "student", "student", "merge"]
    assert [study.knob(name) for name in ("quality", "half", "diversity", "base")] == [0.0, 0.5, 1.0, None]
    study.merges["sharper"] = Merge(
        ["quality", "diversity"], [1.5, 0.5], "sum", "tunes:base"
    )  # beyond both: on no line
    assert [study.knob(name) for name in ("half", "sharper")] == [0.5, None]
    study.merges["beyond"] = Merge(["quality", "diversity"], [-0.5, 1.5])
    assert [study.knob(name) for name in ("half", "beyond")] == [0.5, 1.5]
    study.merges["other"] = Merge(["quality", "half"], [0.5, 0.5])
    assert study.knob("half") is None


def test_a_rival_is_a_baseline_and_a_guided_student_is_none(change):
    """Fronts and claims compare with all baselines, and with them alone."""
    rival = {"model": "base", "anneal": {"base": "base"}}
    guided = {"model": "quality", "guidance": 2.0}
    study = read_study(change({"baselines/annealed": rival, "systems": {"guided": guided, "cold": {"model": "base"}}}))
    assert [study.kind(name) for name in ("annealed", "guided", "cold")] == ["base", "model", "base"]
    # A sweep over a fine-tuned rival is one of baselines, too.
    sweep = {"model": "quality", "temperature": [0.7], "guidance": [1.0, 2.0]}
    study = read_study(change({"sweeps": {"tuned": sweep}}))
    assert [study.kind(name) for name in study.swept()] == ["base", "guidance"]


def test_the_command_line_exits_with_2_and_loads_no_torch(place):
    code = (
        "import sys; from cfg_distill.cli import main; code = main(['study', 'study.yaml', '--out', 'base']);"
        " print('torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.strip() == "False"
    assert "`base` holds files, but no study" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_recipe_of_each_fit_is_read_once(place, change, monkeypatch):
    """By the study's own process, from its file to the plan and the record; before, six times."""
    (place / "other.yaml").write_text((place / "fit.yaml").read_text() + "# another file\n")
    change({"fits/diversity/config": "other.yaml"})
    texts = {name: (place / name).read_text() for name in ("fit.yaml", "other.yaml", "study.yaml")}
    loads, load = [], yaml.load

    def counted(stream, *rest):
        text = stream if isinstance(stream, str) else stream.read()
        loads.extend(name for name, content in texts.items() if text == content)
        return load(text, *rest)

    monkeypatch.setattr(yaml, "load", counted)
    monkeypatch.setattr(run.Runner, "check", lambda runner: jobs_of_checks(runner.study))
    monkeypatch.setattr(run.Runner, "run", lambda runner: (runner.folder / "table.txt").touch())
    run_steps("study.yaml")
    assert sorted(loads) == ["fit.yaml", "other.yaml", "study.yaml", "study.yaml"]  # the last one for the paths in it


def test_a_recipe_that_cannot_be_read_is_told_once(place, change):
    (place / "broken.yaml").write_text("model: [1,")
    change({"fits/quality/config": "broken.yaml", "fits/diversity/overrides": {"data.train": "none.txt"}})
    first, second = problems_of(read_study("study.yaml"))
    assert str(first).startswith("Key `fits.quality.config`: File `broken.yaml`: expected YAML")
    assert str(second).startswith(
        "fits.diversity: Key `data.train`: Expected a file of prompts, but `none.txt` does not"
    )


def test_a_file_of_prompts_that_cannot_be_read_is_told_once_for_all_fits(place):
    (place / "train.txt").write_text("")
    (problem,) = problems_of(read_study("study.yaml"))
    assert str(problem).startswith("fits.quality, fits.diversity: Key `data.train`: Expected at least one prompt")


def test_a_misspelled_key_does_not_hide_what_stands_under_it(place, change):
    path = change({"merge": {"half": {"models": ["quality"], "weight": [1.0]}}, "merges": None})
    study, problems = load_study(path)
    assert [problem.path for problem in problems] == ["merge", "merge.half.weight"]
    assert study.merges["half"].weights == [1.0]
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    assert caught.value.problems == problems
