"""The study file: every problem at once, in one message each, before anything runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from cfg_distill.errors import ConfigError
from cfg_distill.study import run, run_study
from cfg_distill.study.check import command_of, jobs_of_checks, problems_of
from cfg_distill.study.config import Merge, load_study, read_study


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
            "claims/temperature": ["base T 0.7", "guidance 2"],
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
    assert "Key `baselines.guidance 2.guidance`: expected a number of at least 0" in text
    assert "Did you mean `words`?" in text
    assert "Key `evaluation.seeds`: expected one or more different numbers" in text
    assert "Did you mean `half`?" in text
    assert "Key `claims.temperature`: expected a system" in text
    assert "Did you mean `base T 0.8`?" in text
    assert "no guidance, but `guidance 2` is none." in text
    assert len(found) == 11


def test_a_fit_cannot_start_from_a_later_one(change):
    (problem,) = problems_of(read_study(change({"fits/quality/start": "diversity"})))
    assert str(problem).startswith(
        "Key `fits.quality.start`: expected a model folder or a fit or merge named further up"
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


def test_overrides_reach_recipe_and_command(change):
    overrides = {"trainer.max_steps": 3, "data.shuffle": False, "model.start": "x"}
    fit = read_study(change({"fits/quality/overrides": overrides})).fits["quality"]
    assert (fit.recipe.at("trainer.max_steps"), fit.recipe.at("trainer.devices")) == (3, 1)
    assert command_of(fit) == [
        *("fit", "--config", "fit.yaml", "--trainer.max_steps=3", "--data.shuffle=false", "--model.start=x")
    ]


def test_kinds_and_knobs(place):
    study = read_study("study.yaml")
    kinds = {name: study.kind(name) for name in study.all_systems()}
    assert list(kinds.values()) == ["base", "base", "guidance", "student", "student", "merge"]
    assert [study.knob(name) for name in ("quality", "half", "diversity", "base")] == [0.0, 0.5, 1.0, None]
    study.merges["other"] = Merge(["quality", "half"], [0.5, 0.5])
    assert study.knob("half") is None


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
    run_study("study.yaml")
    assert sorted(loads) == ["fit.yaml", "other.yaml", "study.yaml"]


def test_a_recipe_that_cannot_be_read_is_told_once(place, change):
    (place / "broken.yaml").write_text("model: [1,")
    change({"fits/quality/config": "broken.yaml", "fits/diversity/overrides": {"data.train": "none.txt"}})
    first, second = problems_of(read_study("study.yaml"))
    assert str(first).startswith("Key `fits.quality.config`: File `broken.yaml`: expected YAML")
    assert str(second).startswith(
        "fits.diversity: Key `data.train`: Expected a file of prompts, but `none.txt` does not"
    )


def test_a_misspelled_key_does_not_hide_what_stands_under_it(place, change):
    path = change({"merge": {"half": {"models": ["quality"], "weight": [1.0]}}, "merges": None})
    study, problems = load_study(path)
    assert [problem.path for problem in problems] == ["merge", "merge.half.weight"]
    assert study.merges["half"].weights == [1.0]
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    assert caught.value.problems == problems
