"""Real tunes as a reference: those that have what a prompt asks for, cut to the length of the samples."""

import pytest
import torch

from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError, Context
from cfg_distill.generators import CausalLM
from cfg_distill.references import Sounds, StartSamples
from cfg_distill.tunes.corpus import Tune
from cfg_distill.tunes.reference import TuneReference


def made(**settings) -> TuneReference:
    reference = TuneReference(**settings)
    slots = [("irish", "jig", "6/8", "major"), ("irish", "reel", "4/4", "minor"), ("english", "jig", "6/8", "any")]
    reference.tunes = [Tune(str(n), *each, tokens=tuple(f"n{n}{t}" for t in range(9))) for n, each in enumerate(slots)]
    return reference


def test_tunes_belong_to_the_prompts_that_ask_for_them():
    weight = made().weight(["an Irish tune", "a jig", "a tune in D minor", "a jig in C major"])
    assert weight.tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert made(match="none").weight(["a jig", "a reel"]).tolist() == [[1], [1]]
    vectors_RD, weight_BR = made(tokens=2).at(["a jig"], NGramCounts(n=1))
    assert weight_BR.tolist() == [[0.5, 0, 0.5]] and vectors_RD.shape[0] == 3
    assert torch.equal(vectors_RD, NGramCounts(n=1).embed(["n00 n01", "n10 n11", "n20 n21"]))
    with pytest.raises(ConfigError, match="none belongs to 'a slip jig'"):
        made().at(["a jig", "a slip jig"], NGramCounts(n=1))


def test_slots_are_left_out_where_too_few_tunes_have_all_of_them():
    prompts = ["an English jig", "an Irish jig in C major", "a Scottish reel", "a slip jig"]
    kept = [[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert made().weight(prompts).tolist() == kept
    # A jig of any origin; the same; a reel of any origin; nothing is left of what a slip jig asks for but itself.
    assert made(at_least=1).weight(prompts).tolist() == [*kept[:2], [0, 1, 0], [1, 1, 1]]
    assert made(at_least=2).weight(prompts).tolist() == [[1, 0, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1]]


def test_wrong_settings_are_named_before_tunes_are_read():
    assert TuneReference().problems() == []
    found = TuneReference(split="training", tokens=0, match="all", at_least=-1).problems()
    assert [problem.path for problem in found] == ["split", "tokens", "match", "at_least"]


def test_outputs_shorter_than_the_samples_are_refused(tmp_path):
    (tmp_path / "clip.wav").touch()
    fit = Context(training=True, length=80, seconds=12.0)
    assert TuneReference(tokens=80).problems(fit) == Sounds(str(tmp_path), 12.0).problems(fit) == []
    (problem,) = TuneReference(tokens=79).problems(fit)
    assert str(problem) == "Key `tokens`: expected at least 80, as many as the samples have, but got 79. Raise it."
    (problem,) = Sounds(str(tmp_path), 10.0).problems(fit)
    assert str(problem).startswith("Key `seconds`: expected at least the 12 of the samples, but got 10.")
    other = StartSamples(generator=CausalLM("tunes:base"), tokens=40)
    assert [problem.path for problem in other.problems(Context(length=80))] == ["tokens"]
    (tmp_path / "clip.wav").unlink()
    assert "holds none" in str(Sounds(str(tmp_path)).problems()[0])
