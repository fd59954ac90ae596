"""Numbers and settings that cannot be are found before any fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_study import read_study

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.study.check import problems_of
from cfg_distill.study.checking import CheckFit
from cfg_distill.study.forecast import Forecast
from cfg_distill.study.steps import plan

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("evaluation/temperature", NAN, "expected a number of at least 0, but got nan."),
        ("evaluation/temperature", INFINITE, "expected a number of at least 0, but got inf."),
        ("evaluation/temperature", -1.0, "expected a number of at least 0, but got -1.0."),
        ("baselines/base/temperature", NAN, "expected a number of at least 0, but got nan."),
        ("evaluation/top_p", -1.0, "expected a number above 0 and up to 1 (1 keeps all), but got -1.0."),
        ("evaluation/top_p", 0.0, "expected a number above 0 and up to 1 (1 keeps all), but got 0.0."),
        ("evaluation/top_p", 5.0, "expected a number above 0 and up to 1 (1 keeps all), but got 5.0."),
        ("evaluation/top_p", NAN, "expected a number above 0 and up to 1 (1 keeps all), but got nan."),
        ("evaluation/top_k", -3, "expected at least 0, but got -3."),
        (
            "baselines/guidance 2/guidance",
            INFINITE,
            "expected a number from 0 to 1000 (1 is no guidance), but got inf.",
        ),
        ("baselines/guidance 2/guidance", NAN, "expected a number from 0 to 1000 (1 is no guidance), but got nan."),
        ("evaluation/samples", 1, "expected at least 2, since a single sample per prompt has no diversity, but got 1."),
        ("evaluation/samples", 0, "expected at least 2, since a single sample per prompt has no diversity, but got 0."),
        ("evaluation/max_new_tokens", 0, "expected at least 1, but got 0."),
        ("evaluation/batch_size", 0, "expected at least 1, but got 0."),
        ("evaluation/written", -1, "expected at least 0, but got -1."),
        ("evaluation/seeds", [], "expected one or more different numbers, but got []."),
        ("evaluation/seeds", [1, 1], "expected one or more different numbers, but got [1, 1]."),
        ("evaluation/seeds", [10**30], f"expected whole numbers of at most {2**40}, but got [{10**30}]."),
        ("claims/margin", INFINITE, "expected a number above 0, but got inf."),
        ("claims/margin", NAN, "expected a number above 0, but got nan."),
        ("claims/margin", 0.0, "expected a number above 0, but got 0.0."),
        ("parallel", -1, "expected at least 0 (one per core), but got -1."),
    ],
)
def test_a_number_that_cannot_be(change, key, value, said):
    (problem,) = problems_of(read_study(change({key: value})))
    assert str(problem) == f"Key `{key.replace('/', '.')}`: {said}"


def test_null_is_the_default_of_claims(place):
    path = place / "study.yaml"
    path.write_text(path.read_text().split("claims:")[0] + "claims: null\n")
    study = read_study(path)
    assert study.claims is None and problems_of(study) == []


def test_a_name_that_is_too_long_for_a_file(change):
    with pytest.raises(ConfigError, match=r"Key `baselines\..*`: names become folders: expected up to 100 letters"):
        read_study(change({f"baselines/{'a' * 240}": {"model": "base"}}))


@pytest.mark.parametrize("steps", [NAN, "many", 10**400])
def test_steps_that_are_no_number_are_found_by_the_check_of_the_fit(change, steps):
    """A traceback in the display, before."""
    study = read_study(change({"fits/quality/overrides": {"trainer.max_steps": steps}}))
    assert problems_of(study) == []
    Forecast(plan(study, Path("out")), parallel=1).time_left()


@pytest.mark.parametrize(
    "callbacks",
    [
        [],
        [{"class_path": "cfg_distill.callbacks.ExactResume"}],
        [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}],
    ],
)
def test_a_fit_that_would_write_no_last_checkpoint(real, callbacks):
    words = ["fit", "--config", "fit.yaml", f"--trainer.callbacks={callbacks}"]
    with pytest.raises(ConfigError, match=r"Key `trainer.callbacks`: expected one that writes `last.ckpt`") as caught:
        CheckFit(words).run(print)
    assert "ModelCheckpoint with `save_last: true`" in str(caught.value)
    CheckFit(words[:3]).run(print)


def test_a_checkpoint_writer_of_the_user_is_as_good(real, monkeypatch):
    monkeypatch.syspath_prepend(str(real))
    (real / "my_writer.py").write_text(
        "from lightning.pytorch.callbacks import ModelCheckpoint\n\n\nclass Mine(ModelCheckpoint):\n"
        "    def __init__(self):\n        super().__init__(save_last=True, save_top_k=0)\n"
    )
    CheckFit(["fit", "--config", "fit.yaml", "--trainer.callbacks=[{class_path: my_writer.Mine}]"]).run(print)


@pytest.mark.slow
def test_everything_that_is_wrong_with_a_study_is_told_at_once(real, change, capsys):
    """A misspelled key, a name that means nothing, and what takes torch to see; before, one kind of them per run."""
    change(
        {
            "merge": {"half": {"models": ["quality", "diversity"], "weights": [0.5, 0.5]}},
            "merges": None,
            "claims/quality": "qualty",
            "evaluation/top_p": 5.0,
            "evaluation/metrics/words": {"class_path": "mine.Wrods"},
            "fits/quality/overrides": {"model.sampling.sampels": 3},
            "fits/diversity/overrides": {"trainer.callbacks": []},
        }
    )
    assert main(["study", "study.yaml"]) == 2
    text = capsys.readouterr().err
    assert "Key `merge`: expected a known key" in text and "Did you mean `merges`?" in text
    assert "Key `claims.quality`: expected a system" in text
    assert "Key `claims.merge`" not in text  # the merge is known although its key is misspelled
    assert "Key `evaluation.top_p`" in text
    assert "evaluation.metrics" in text and "Wrods" in text
    assert "fits.quality: Key `model.sampling.sampels`: no such key. Did you mean `samples`?" in text
    assert "fits.diversity: Key `trainer.callbacks`: expected one that writes `last.ckpt`" in text
    assert "6 problems, nothing was started" in text
    assert not (real / "out").exists()
