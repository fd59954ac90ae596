"""Prompts that a reference has no outputs for, and clips that are too short: found before weights load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny_fits import student_of

from cfg_distill.audio import Waveform, write_audio
from cfg_distill.data import PromptData
from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError, Context
from cfg_distill.evaluation import EvaluateRequest
from cfg_distill.evaluation.anneal import Anneal
from cfg_distill.evaluation.headline import Headline
from cfg_distill.evaluation.measure import evaluate
from cfg_distill.generators import CausalLM
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.metrics import CodeAccuracy, KernelDistance, PromptRetrieval, PseudoDensity
from cfg_distill.metrics.rewarded import RewardMetric
from cfg_distill.recipe.scoring import problems_of_scoring
from cfg_distill.references import Reference, Sounds, StartSamples, Texts
from cfg_distill.rewards import CodeInformation, Density, DiversityTarget, Mixed, PromptContrast, Witness
from cfg_distill.sampling import Sampling
from cfg_distill.study.checking import CheckEvaluation
from cfg_distill.study.parts import Evaluation, SystemConfig
from cfg_distill.tunes.corpus import Tune
from cfg_distill.tunes.reference import TuneReference


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Texts:
    """Three texts for w1 and one for w2; none for the prompts of the fit and the evaluation, w5 to w9, but w5 and w6."""
    monkeypatch.chdir(tmp_path)
    asked = ["w1", "w1", "w1", "w2", "w5", "w6"]
    Path("texts.jsonl").write_text(
        "".join(json.dumps({"text": f"a {n}", "asked": each}) + "\n" for n, each in enumerate(asked))
    )
    Path("train.txt").write_text("w1\nW5 \nw7\n")
    Path("validation.txt").write_text("w6\nw8\n")
    Path("two.txt").write_text("w1\nw9\n")
    return Texts("texts.jsonl", prompt_field="asked")


def test_every_part_that_compares_says_which_prompts_have_too_few_outputs(texts):
    embedder = NGramCounts()
    witness = Witness(embedder, texts)
    assert witness.problems_of_prompts(["w1", "w2"]) == []
    (problem,) = witness.problems_of_prompts(["w1", "x", "y", "x", "z", "v"])
    assert str(problem) == (
        "Key `reference.init_args.prompt_field`: expected at least 1 output for every prompt, but 4 of 5 have fewer: 'x' (0),"
        " 'y' (0), 'z' (0) and 1 more. Add texts for them, or leave `prompt_field` empty: then every text serves every prompt."
    )
    found = {
        "k + 1": Density(embedder, texts, k=2).problems_of_prompts(["w1", "w2"]),
        "metric": PseudoDensity(embedder, texts, k=2).problems_of_prompts(["w1", "w2"]),
        "target": DiversityTarget(embedder, texts).problems_of_prompts(["x"]),
        "mixed": Mixed({"a": witness}).problems_of_prompts(["x"]),
        "loss": PolicyGradient(witness).problems_of_prompts(["x"]),
        "reward as metric": RewardMetric(witness).problems_of_prompts(["x"]),
        "contrasted": PromptContrast(embedder, texts, "two.txt").problems_of_prompts(["w1"]),  # w9 has none
        "retrieved": PromptRetrieval(embedder, texts, "two.txt").problems_of_prompts(["w1"]),
    }
    inner = "reference.init_args.prompt_field"
    assert {name: [each.path for each in problems] for name, problems in found.items()} == {
        "k + 1": [inner],
        "metric": [inner],
        "target": ["target.init_args.prompt_field"],
        "mixed": [f"rewards.a.init_args.{inner}"],
        "loss": [f"reward.init_args.{inner}"],
        "reward as metric": [f"reward.init_args.{inner}"],
        "contrasted": [inner],
        "retrieved": [inner],
    }
    for name in ("k + 1", "metric"):
        said = found[name][0].text
        assert "at least 3 outputs" in said and "'w2' (1)" in said and "`k`, which needs 2 + 1" in said
    alike = Texts("texts.jsonl")
    assert alike.problems_of_prompts(["x"], 6) == [] and alike.problems_of_prompts(["x"], 7)
    assert StartSamples(samples=4).problems_of_prompts(["x"], 4) == []


def test_tunes_are_counted_only_where_some_prompt_can_have_too_few(monkeypatch):
    read = []
    kinds = [("jig", "6/8"), ("reel", "4/4"), ("reel", "4/4")]
    tunes = [Tune(str(n), "irish", *kind, "major", tokens=("a",)) for n, kind in enumerate(kinds)]
    monkeypatch.setattr("cfg_distill.tunes.reference.tunes_of", lambda split: (read.append(split), tunes)[1])
    assert TuneReference(at_least=11).problems_of_prompts(["a slip jig"], 11) == []
    assert TuneReference(match="none").problems_of_prompts(["a slip jig"]) == [] and read == []
    (problem,) = TuneReference().problems_of_prompts(["a jig", "a slip jig", "a reel"])
    assert problem.path == "at_least" and "1 of 3 have fewer: 'a slip jig' (0). Raise `at_least`" in problem.text
    (problem,) = TuneReference(at_least=1).problems_of_prompts(["a jig", "a reel"], 2)
    assert "1 of 2 have fewer: 'a jig' (1)" in problem.text and read == ["train"] * 2


def test_a_fit_asks_for_all_prompts_that_train_or_validate(texts, tiny_model):
    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(Witness(NGramCounts(), texts), weight=0.1)}
    module = student_of(tiny_model, losses=losses)
    data = PromptData("train.txt", "validation.txt")
    data.setup("fit")
    (problem,) = module.problems_of_data(data)
    placed = problem.under("data")
    where = "model.losses.diversity.init_args.reward.init_args.reference.init_args.prompt_field"
    assert placed.path == where and str(placed).startswith(f"Key `{where}`: expected at least 1 output")
    assert "2 of 5 have fewer: 'w7' (0), 'w8' (0)." in placed.text


def metric_of(texts: Texts) -> dict:
    reference = {
        "class_path": "cfg_distill.references.Texts",
        "init_args": {"path": texts.path, "prompt_field": "asked"},
    }
    init_args = {"embedder": {"class_path": "cfg_distill.embedders.NGramCounts"}, "reference": reference, "k": 1}
    return {"density": {"class_path": "cfg_distill.metrics.PseudoDensity", "init_args": init_args}}


def test_an_evaluation_a_study_and_a_callback_name_the_metric(texts, tiny_model):
    Path("metrics.yaml").write_text(yaml.safe_dump(metric_of(texts)))
    request = EvaluateRequest([tiny_model], "validation.txt", metrics="metrics.yaml", samples=2, max_new_tokens=4)
    inner = "density.init_args.reference.init_args.prompt_field"
    said = f"Key `{inner}`: expected at least 2 outputs for every prompt, but 2 of 2 have fewer: 'w6' (1), 'w8' (0)."
    (problem,) = request.problems()
    assert problem.key == "metrics" and problem.text.startswith(said)

    evaluation = Evaluation("validation.txt", metric_of(texts), Headline("q", "d"), samples=2, max_new_tokens=4)
    with pytest.raises(ConfigError) as found:
        CheckEvaluation(evaluation, [], [SystemConfig(tiny_model)]).run(print)
    assert [each.path for each in found.value.problems] == [f"evaluation.metrics.{inner}"]

    data = PromptData("train.txt", "validation.txt")
    data.setup("fit")
    scoring = SimpleNamespace(metrics={"density": PseudoDensity(NGramCounts(), texts, k=1)})
    (problem,) = problems_of_scoring({"trainer.callbacks[0].init_args": scoring}, data)
    assert problem.path == f"trainer.callbacks[0].init_args.metrics.{inner}"


def test_a_study_compares_the_codes_of_its_systems_with_its_metrics(texts, tiny_model):
    words = {"values": 2, "template": "{label} {prompt}", "words": ["w10", "w11"]}
    init_args = {
        "embedder": {"class_path": "cfg_distill.embedders.NGramCounts"}, "against": "validation.txt", "values": 3,
        "reference": {"class_path": "cfg_distill.references.Texts", "init_args": {"path": texts.path}},
    }  # fmt: skip
    metrics = {"read": {"class_path": "cfg_distill.metrics.CodeAccuracy", "init_args": init_args}}
    evaluation = Evaluation("validation.txt", metrics, Headline("q", "d"), samples=2, max_new_tokens=4)
    labels, codes = (
        SystemConfig(tiny_model, conditioner={"class_path": f"cfg_distill.sampling.{kind}", "init_args": words})
        for kind in ("Labels", "Codes")
    )
    CheckEvaluation(evaluation, [], [SystemConfig(tiny_model), labels]).run(print)
    with pytest.raises(ConfigError) as found:
        CheckEvaluation(evaluation, [], [labels, codes]).run(print)
    assert [each.path for each in found.value.problems] == ["evaluation.metrics.read.init_args.values"]
    assert "expected 2, as many codes as the samples have, but got 3" in str(found.value)


def test_a_study_refuses_a_start_model_of_another_vocabulary(texts, tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    content = json.loads((other / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["w0"], words["w1"] = words["w1"], words["w0"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    evaluation = Evaluation("validation.txt", {}, Headline("q", "d"), samples=2, max_new_tokens=4)
    with pytest.raises(ConfigError) as found:
        CheckEvaluation(evaluation, [], [SystemConfig(tiny_model, anneal=Anneal(base=str(other)))]).run(print)
    (problem,) = found.value.problems
    assert "Key `anneal.base`: expected a model with the vocabulary of" in str(problem)


def test_sound_files_shorter_than_a_clip_are_refused_for_that(tmp_path):
    for number, seconds in enumerate((1.0, 2.0)):
        write_audio(tmp_path / f"{number}.wav", Waveform(torch.full((1, int(8000 * seconds)), 0.1), 8000))
    (problem,) = Sounds(str(tmp_path), seconds=10.0).problems(Context(training=True, seconds=10.0))
    said = f"expected sound files of at least 10 s, but the longest in `{tmp_path}` lasts 2 s. Lower it"
    assert problem.path == "seconds" and problem.text.startswith(said)
    assert Sounds(str(tmp_path), seconds=2.1).problems(Context()) == []  # padded by an encoder's frame
    assert Sounds(str(tmp_path), seconds=2.0).problems(Context(seconds=2.0)) == []


def test_a_metric_that_fails_while_samples_are_drawn_is_named(texts, tiny_model):
    metric = PseudoDensity(NGramCounts(), texts, k=2)
    generator = CausalLM(tiny_model).load()
    with pytest.raises(ConfigError, match=r"Key `metrics.density.init_args.k`: prompt 'w5'.*at least 3 reference"):
        evaluate(generator, ["w5"], Sampling(2, 4), None, {"density": metric.load()})


class Widening(NGramCounts):
    """Vectors that are as wide as the number of outputs: an embedder that counts the words of its call, say."""

    def embed(self, outputs):
        return torch.eye(len(outputs))


def test_an_embedder_that_changes_its_width_is_named_with_both(texts, samples_of):
    samples = samples_of(torch.tensor([[0, 1, 2]]))
    samples.rollout.labels_BG = torch.tensor([[0, 1, 0]])
    samples.outputs = ["a", "b", "c"]

    class Four(Reference):
        def parts(self):
            yield ["a", "b", "c", "d"]

    said = r"expected vectors of one width from Widening, but it gave the reference 4 numbers per output, and the samples 3"
    embedder = Widening()
    for reward in (
        Witness(embedder, Four(), bandwidths=[1.0]),
        Density(embedder, Four(), k=1),
        PromptContrast(embedder, Four(), "two.txt"),
        CodeInformation(embedder, Four(), "two.txt", values=2),
    ):
        with pytest.raises(ConfigError, match=f"Key `reference`: {said}"):
            reward(samples)
    for metric in (
        KernelDistance(embedder, Four(), bandwidths=[1.0]),
        PseudoDensity(embedder, Four(), k=1),
        PromptRetrieval(embedder, Four(), "two.txt"),
        CodeAccuracy(embedder, Four(), "two.txt", values=2),
    ):
        with pytest.raises(ConfigError, match=said):
            metric.score(samples)


def test_a_text_belongs_to_the_prompt_of_its_own_line(folder: Path) -> None:
    """As many texts as prompts, and yet each would stand beside another line's."""
    Path("pairs.csv").write_text("text,prompt\n,a jig\nof the reel,a reel\nof the waltz,\nof the air,an air\n")
    (problem,) = Texts("pairs.csv", prompt_field="prompt").problems()
    assert "have one of the two alone: 2, 4." in problem.text
    Path("pairs.csv").write_text("text,prompt\nof the reel,a reel\n,\nof the air,an air\n")
    whole = Texts("pairs.csv", prompt_field="prompt")
    assert whole.problems() == [] and whole.weight(["an air"]).tolist() == [[0.0, 1.0]]
