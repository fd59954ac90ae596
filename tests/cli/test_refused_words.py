"""Words of a command line that would be dropped without a word, or throw away what a recipe says: they are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cfg_distill.cli import main

RECIPE = """
model:
  generator: {{class_path: cfg_distill.generators.CausalLM, init_args: {{path: {path}}}}}
  guidance: {{scale: 3.0}}
  losses: {{kl: cfg_distill.losses.ReverseKL}}
data: {{train: train.txt, batch_size: 2}}
trainer: {{max_steps: 2, callbacks: {{ema: cfg_distill.callbacks.StudentEMA}}}}
"""


@pytest.fixture
def recipe(folder: Path, tiny_model: str) -> str:
    (folder / "r.yaml").write_text(RECIPE.format(path=tiny_model))
    (folder / "t.yaml").write_text("max_epochs: 3\n")
    (folder / "train.txt").write_text("w1 w2\nw3\n")
    return "r.yaml"


def said(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main(list(words)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err
    return " ".join(shown.err.split())


@pytest.mark.parametrize(
    "words", [["--trainer", "t.yaml"], ["--trainer=none"], ["--model", "t.yaml"], ["--data=t.YML"]]
)
def test_a_file_in_place_of_a_part_is_no_way_to_compose(
    recipe: str, capsys: pytest.CaptureFixture, words: list[str]
) -> None:
    told = said(capsys, "fit", "--config", recipe, *words)
    name, value = " ".join(words).replace("=", " ").removeprefix("--").split()
    assert f"Key `{name}`: expected keys and values, but got `{value}`. Give files by `--config`" in told
    assert f"in it, put the keys under `{name}:`." in told


def test_what_is_asked_for_is_shown_in_a_quiet_fit(recipe: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--quiet", "--config", recipe, "--print_config", "--model.guidance.negative='[a sad air]'"])
    shown = capsys.readouterr().out
    assert "max_steps: 2" in shown and "negative: '[a sad air]'" in shown
    with pytest.raises(SystemExit):
        main(["fit", "--model.generator.help", "cfg_distill.generators.CausalLM", "--quiet"])
    assert "--model.generator.path" in capsys.readouterr().out or "init_args.path" in capsys.readouterr().out


def test_the_help_of_a_class_takes_the_words_that_the_help_shows(recipe: str, capsys: pytest.CaptureFixture) -> None:
    for words, key in (
        (["--data.help", "cfg_distill.data.PromptData"], "batch_size"),
        (["--data.help=cfg_distill.data.PromptData", "--config", recipe], "batch_size"),
        (["--model.help", "cfg_distill.distillation.CFGDistillation"], "micro_batch"),
        (["--model.help"], "micro_batch"),
        (["--config", recipe, "--data.help", "--quiet"], "batch_size"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *words])
        shown = capsys.readouterr()
        assert not stopped.value.code and key in shown.out, shown.err
    told = said(capsys, "fit", "--data.help", "cfg_distill.data.PromptDatta")
    assert "PromptDatta" in told


def test_plan_refuses_what_only_a_fit_does(capsys: pytest.CaptureFixture) -> None:
    told = said(capsys, "plan", "--config", "r.yaml", "--print_config", "--quiet", "--model.help")
    assert "3 problems" in told
    for name, text in (
        ("quiet", "Leave it out"),
        ("print_config", "`cfg-distill fit`"),
        ("model.help", "`cfg-distill fit`"),
    ):
        assert f"Option `--{name}`: plan has none" in told and text in told
    assert "Option `--devices`: expected once" in said(capsys, "plan", "--devices", "1", "--devices=2")


def test_an_option_that_is_given_again_is_refused(capsys: pytest.CaptureFixture) -> None:
    told = said(capsys, "evaluate", "--model", "tunes:base", "--prompts", "a.txt", "--prompts", "b.txt")
    assert "Option `--prompts`: expected once, but got it 2 times. Keep one." in told
    told = said(capsys, "generate", "--model", "a", "--model=b", "--prompt", "x")
    assert "Option `--model`: expected once, but got it 2 times. Keep one." in told
    # What adds up, or says the same again, loses nothing.
    told = said(capsys, "study", "none.yaml", "--remake", "fit", "--remake", "merge", "--overwrite", "--overwrite")
    assert "expected once" not in told


def test_recipes_copies_nothing_without_a_name(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert "Option `--out`: has no effect without `name`" in said(capsys, "recipes", "--out", "q.yaml")


def test_the_scale_behind_a_model_is_checked(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "p.txt").write_text("a jig\n")
    told = said(capsys, "evaluate", "--model", "tunes:base@5000", "--prompts", "p.txt")
    assert "Option `--model`: guidance of `tunes:base`: expected a number from 0 to 1000" in told


def test_the_folder_that_one_stands_in_has_a_name(
    folder: Path, tiny_model: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, folder / "mine")
    monkeypatch.chdir(folder / "mine")
    (folder / "p.txt").write_text("w1\n")
    words = ["--prompts", "../p.txt", "--samples=2", "--max-new-tokens=4", "--out", "../points"]
    assert main(["evaluate", "--model", ".", *words]) == 0
    assert [path.name for path in (folder / "points" / "systems").iterdir()] == ["01 mine.json"]
    assert '"name": "mine"' in (folder / "points" / "systems" / "01 mine.json").read_text()


def test_init_names_both_bounds_of_its_scale(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "p.txt").write_text("\n".join(f"a jig in {key}" for key in "ABCDEFG"))
    told = said(capsys, "init", "--model", "tunes:base", "--prompts", "p.txt", "--guidance", "100")
    assert "Option `--guidance`: expected a number above 1 (no guidance) and below 100, but got 100." in told
