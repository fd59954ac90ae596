"""The ladder of text: written answers, makers of text that must not be paid, and the shipped metrics on the real model."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from cfg_distill.data import read_prompts
from cfg_distill.data.reading import normalised
from cfg_distill.embedders import NGramCounts, WordCounts
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import ladder_text
from cfg_distill.evaluation.intervals import LEAST_PROMPTS
from cfg_distill.evaluation.ladder import Rung, samples_of
from cfg_distill.evaluation.ladder_text import TextLadder, degenerate_texts, read_answers, rewritten_texts
from cfg_distill.evaluation.verdicts import validate
from cfg_distill.folders import RECIPES
from cfg_distill.generators import CausalLM
from cfg_distill.metrics import Degeneration, PairwiseCosineDiversity, Substance
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples

ANSWERS = "recipes/smollm2/ladder.txt"


def test_the_answers_are_to_development_prompts_and_differ():
    answers = read_answers(ANSWERS)
    development, report = (
        {normalised(str(p)) for p in read_prompts(RECIPES / "smollm2/prompts" / f"{name}.txt")}
        for name in ("validation", "report")
    )
    assert len(answers) == 12
    for prompt, texts in answers.items():
        assert normalised(prompt) in development and normalised(prompt) not in report
        assert len(set(texts)) == 4
    prose = [text for prompt, texts in answers.items() if "haiku" not in prompt for text in texts]
    assert min(len(text.split()) for text in prose) >= 30
    assert (
        (RECIPES / "smollm2/ladder.txt").read_text().splitlines()[1].startswith("# Twelve of the development prompts")
    )


def test_a_file_without_a_prompt_or_no_file_is_refused(folder: Path):
    (folder / "a.txt").write_text("# a head\n\nan answer\n")
    with pytest.raises(ConfigError, match="expected a prompt"):
        read_answers("a.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_answers("none.txt")


def test_degenerate_texts_are_what_their_names_say():
    prompt, answers = (
        "Describe a haunted mill.",
        ["The wheel turns, though the river is dry.", "Flour falls upward here."],
    )
    made = degenerate_texts(prompt, answers, ["Other one.", "Other two."], random.Random(0))
    assert {len(group) for group in made.values()} == {2}
    assert sorted(made["shuffled words"][0].split()) == sorted(answers[0].split()) and made["shuffled words"] != answers
    assert made["looping sentence"][0].startswith("The wheel turns, The wheel turns,")
    assert set(made["words of the prompt"][0].split()) == {"Describe", "a", "haunted", "mill"}
    assert made["copied prompt"] == [prompt] * 2 and made["empty"] == ["", ""]
    assert made["truncated"][0] == "The wheel turns, though the river"
    assert made["one word"] == ["though", "upward"]
    assert "haunted mill" in made["bland on topic"][0] and "haunted mill" not in made["bland"][0]
    assert made["answers to others"] == ["Other one.", "Other two."]


def test_rewritten_texts_hold_the_words_of_one():
    answers = ["The wheel turns. The river is dry.", "Flour falls upward here."]
    made = rewritten_texts(answers, random.Random(0))
    assert {len(group) for group in made.values()} == {2}
    for name in ("letter case", "sentences moved"):
        for text in made[name]:
            assert sorted(text.lower().split()) == sorted(answers[0].lower().split()), name
    assert made["an empty one"] == ["", answers[0]] and made["openings"][1].endswith(answers[0])


def test_problems_of_the_ladder(folder: Path, tiny_model: str):
    class Mine(TextLadder):
        path = tiny_model
        answers = "mine.txt"

    (folder / "mine.txt").write_text("> w1\n\nw2 w3\n\nw4\n\n> w5\n\nw6\n")
    assert "as many answers" in str(Mine().problems(["w1", "w5"])[0])
    assert "has none to 'w9'" in str(Mine().problems(["w1", "w9"])[0])
    (folder / "mine.txt").write_text("> w1\n\nw2 w3\n\nw4\n\n> w5\n\nw6\n\nw7 w8\n")
    assert Mine().problems(Mine().prompts()) == []
    assert "at least 2 prompts" in str(Mine().problems(["w1"])[0])
    rungs = {(rung.name, rung.kind): rung.samples for rung in Mine().rungs(["w1", "w5"])}
    assert rungs["written", "real"].outputs == ["w2 w3", "w4", "w6", "w7 w8"]
    lengths = rungs["written", "real"].rollout.mask_BGKT.sum((-2, -1)).tolist()
    assert lengths == [[3, 2], [2, 3]]  # with the end token, as the model writes
    assert rungs["guided", "guided"].prompts == ["w1", "w5"]


def halved(samples: Samples) -> Samples:
    """The first half of each group."""
    half, drawn = samples.group // 2, samples.rollout
    first = [tensor[:, :half] for tensor in (drawn.tokens_BGKT, drawn.mask_BGKT, drawn.log_probs_BGKT)]
    outputs = [output for group in samples.groups() for output in group[:half]]
    return replace(samples, outputs=outputs, rollout=Rollout(*first))


@pytest.mark.slow
def test_substance_holds_on_the_real_model_where_it_counts(monkeypatch: pytest.MonkeyPatch):
    """Guided above the base, and the base above every degenerate kind; few of the prompts, shorter texts, and half of the
    degenerate texts: scoring them by 135 million parameters is what takes the time."""

    class Short(TextLadder):
        longest = 32

    monkeypatch.setattr(ladder_text, "GENERIC", ladder_text.GENERIC[:2])
    ladder = Short()
    prompts = list(ladder.prompts())[:LEAST_PROMPTS]
    rungs = [rung for rung in ladder.rungs(prompts) if rung.kind in ("guided", "base", "degenerate")]
    kept = [Rung(rung.name, rung.kind, halved(rung.samples)) if rung.kind == "degenerate" else rung for rung in rungs]
    metrics = {"substance": Substance(CausalLM("text:smollm2")).load(), "degeneration": Degeneration()}
    found = validate(metrics, kept)
    assert found.outcome("substance") == "holds", found.verdicts
    assert found.unseen == []


def test_counts_of_words_are_not_bought_by_letter_case_and_signs():
    answers = ["The wheel turns. The river is dry.", "Flour falls upward here, by night."]
    made = rewritten_texts(answers, random.Random(0))
    for name in ("letter case", "punctuation", "sentences moved"):
        samples = samples_of(["a prompt"], [made[name]])
        assert PairwiseCosineDiversity(WordCounts(1)).score(samples).item() == pytest.approx(0.0, abs=1e-6), name
        if name != "sentences moved":
            assert PairwiseCosineDiversity(NGramCounts(1)).score(samples).item() > 0.1, name
    assert PairwiseCosineDiversity(WordCounts(1)).score(samples_of(["a prompt"], [answers])).item() > 0.8
