"""Prompts that a model does not understand: one message per file, with lines, for all models, before weights are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfg_distill.cli import main
from cfg_distill.data.reading import together
from cfg_distill.errors import ConfigError, Problem, PromptProblem
from cfg_distill.evaluation.headline import Headline
from cfg_distill.generators import open_generator
from cfg_distill.prompt import Prompt
from cfg_distill.study.checking import CheckEvaluation, each_once
from cfg_distill.study.parts import Evaluation, SystemConfig
from cfg_distill.tunes.prompts import understand
from cfg_distill.tunes.rungs import TuneLadder

FINE = ["an Irish jig", "a reel", "a slow air", "a march", "a Scottish reel", "a waltz"]
WRONG = ["blorb of zonk", "tune", "xyzzy", "hello there"]
SAID = (
    "lines 2, 4, 6 and 1 more: Expected a prompt that says something about a tune, but understood nothing in:"
    " 'blorb of zonk', 'tune', 'xyzzy' and 1 more - say one or more of: origin ("
)


@pytest.fixture
def unread(tmp_path: Path) -> Path:
    """A file whose even lines say nothing of tunes."""
    lines = [line for pair in zip(FINE, [*WRONG, "", ""], strict=True) for line in pair]
    (tmp_path / "unread.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "unread.txt"


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("cfg_distill.generators.causal_lm.CausalLM.load", load)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["evaluate", "--model", "tunes:base", "tunes:base@2", "--prompts"], "Option `--prompts`"),
        (["init", "--model", "tunes:base", "--device", "cpu", "--out", "new", "--prompts"], "Option `--prompts`"),
        (["fit", "--config", "recipes/tunes/quality.yaml", "--data.train"], "Key `data.init_args.train`"),
    ],
)
def test_one_message_per_file(
    words: list[str], key: str, unread: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(unread.parent)
    assert main([*words, str(unread)]) == 2
    err = capsys.readouterr().err
    assert f"cfg-distill {words[0]}: {key}: File `{unread}`, {SAID}" in err
    assert err.count("say one or more of") == 1 and "hello there" not in err


def test_prompts_of_no_file_are_one_message(capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", "--model", "tunes:base", "--prompt", "an Irish jig", *WRONG[:2]]) == 2
    err = capsys.readouterr().err
    assert err.count("understood nothing in: 'blorb of zonk', 'tune' - say") == err.count("say one or more") == 1


def test_a_study_says_it_once_for_all_systems_fits_and_the_ladder(
    unread: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without reading the tunes, which takes seconds; a prompt that says nothing is still refused there.
    monkeypatch.setattr(TuneLadder, "tunes", lambda self, prompt, splits: [understand(str(prompt))] * 99)
    metrics = {"valid": {"class_path": "cfg_distill.tunes.metrics.BarValidity"}}
    evaluation = Evaluation(str(unread), metrics, Headline("valid", "d"))
    template = SystemConfig("tunes:base", prompt="{prompt}, please")
    systems = [SystemConfig("tunes:base"), SystemConfig("tunes:base", guidance=2.0), template]
    with pytest.raises(ConfigError) as error:
        CheckEvaluation(evaluation, ["tunes:base"], systems, "tunes").run(lambda done, total: None)
    (problem,) = error.value.problems
    assert str(problem).startswith(f"Key `evaluation.prompts`: File `{unread}`, {SAID}")
    of_fit = Problem("data.init_args.train", problem.text)
    other = Problem("data.init_args.train", "File `b.txt`, line 1: Mend it.")
    told = each_once({problem: ["evaluation"], of_fit: ["fits.a"], other: ["fits.a", "fits.b"]})
    assert told == [problem, Problem("", f"fits.a, fits.b: {other}")]


def test_the_reason_of_a_template_and_of_a_metric_is_the_same() -> None:
    """Also where a word of the message is the whole prompt."""
    given = ["tune", "an Irish jig", "a", "prompt"]
    with pytest.raises(ConfigError) as error:
        open_generator("tunes:base").prompt_positions(given)
    reasons = {each.reason for each in error.value.problems if isinstance(each, PromptProblem)}
    assert len(error.value.problems) == 3 and len(reasons) == 1 and "understood nothing in: {prompt} -" in reasons.pop()


def test_lines_are_those_of_the_prompt_with_its_conditions(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "rock", "conditions": {"bpm": "9"}}\n\n{"prompt": "rock"}\n"jazz"\n')
    found = [PromptProblem.of(Prompt("rock", bpm="9"), "too slow. Raise it."), Problem("other", "stays.")]
    first, second = together(found, file)
    assert str(first) == f"File `{file}`, line 1: Prompt 'rock': too slow. Raise it." and second == found[1]
    (both,) = together([PromptProblem.of("rock", "no.")], file)
    assert str(both) == f"File `{file}`, lines 1, 3: Prompt 'rock': no."
