"""Misspelt names of models, recipes and study files: the message names the one that is meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cfg_distill.cli import main
from cfg_distill.folders import problems_of_folder, resolve, similar_file
from cfg_distill.generators import CausalLM


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("generate --model tunes:bose --prompt x", "tunes:base"),
        ("study recipes/quickstrat.yaml", "recipes/quickstart.yaml"),
        ("study my_studdy.yaml", "my_study.yaml"),
        ("study my_study.yaml", "recipes/tunes/quality.yaml"),
        ("fit --config recipes/tunes/qualty.yaml", "recipes/tunes/quality.yaml"),
    ],
)
def test_the_one_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_study.yaml").write_text("fits: {quality: {config: recipes/tunes/qualty.yaml}}\n")
    assert main(words.split()) == 2
    assert f"Did you mean `{meant}`?" in capsys.readouterr().err


def test_a_folder_in_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    """As in a recipe, where no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_model, tmp_path / "base")
    assert problems_of_folder("~/base") == [] and resolve("~/base") == str(tmp_path / "base")
    assert CausalLM("~/base").problems() == []


def test_a_home_folder_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was a traceback."""
    assert main(["generate", "--model", "~no-such-user/x", "--prompt", "x"]) == 2
    assert "expected a model folder, but `~no-such-user/x` does not exist" in capsys.readouterr().err
    assert main(["study", "~no-such-user/study.yaml"]) == 2
    assert main(["export", "--checkpoint=~no-such-user/a", "--out=~no-such-user/b"]) == 2
    assert main(["merge", "--models", "~no-such-user/a", "x", "--weights", ".5", ".5", "--out=~no-such-user/b"]) == 2
    assert not list(folder.iterdir())


def test_nothing_is_guessed_where_nothing_is_near(tmp_path: Path) -> None:
    assert similar_file(tmp_path / "study.yaml") == similar_file("nowhere/study.yaml") == ""
    (tmp_path / "tiny.yaml").touch()
    assert similar_file(str(tmp_path / "nowhere.yaml")) == ""
