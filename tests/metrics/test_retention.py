"""Samples beside what the start model writes from the same openings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder
from tiny_dia import tiny_dia
from torch import Tensor

from cfg_distill.cli import main
from cfg_distill.embedders import Embedder, NGramCounts
from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.generators import CausalLM, Dia
from cfg_distill.metrics import Retention
from cfg_distill.sampling import Rollout, Sampling, StartModel
from cfg_distill.sampling.samples import Samples, decoded, draw

PROMPTS = ["w1 w2", "w5", "w7 w3"]
OPENING, LENGTH, GROUP = 3, 12, 4


class EachTextApart(Embedder):
    """Every text that differs has a direction of its own; the empty text is degenerate."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def problems(self, context: Context = Context()) -> list[Problem]:
        return []

    def load(self) -> EachTextApart:
        return self

    def embed(self, outputs: Sequence[str]) -> Tensor:
        self.seen += [text for text in dict.fromkeys(outputs) if text not in self.seen]
        return torch.eye(500)[[self.seen.index(text) for text in outputs]]

    def degenerate(self, outputs: Sequence[str]) -> Tensor:
        return torch.tensor([not text for text in outputs])


@pytest.fixture(scope="module")
def sure(tmp_path_factory) -> CausalLM:
    """A start model whose continuation follows from the opening alone."""
    generator = CausalLM(tiny_folder(tmp_path_factory.mktemp("sure"), scale=4.0)).load()
    with torch.no_grad():
        generator.model.lm_head.weight.mul_(1e4)
        generator.model.lm_head.weight[:4] = 0  # neither the end nor another special token
    return generator


@pytest.fixture(scope="module")
def loose(tmp_path_factory) -> CausalLM:
    return CausalLM(tiny_folder(tmp_path_factory.mktemp("loose"), seed=9, scale=1.0)).load()


@pytest.fixture(scope="module")
def samples(sure: CausalLM, loose: CausalLM) -> Samples:
    """Samples that go on as the start model does, from openings that another model drew."""
    given = draw(loose, PROMPTS, Sampling(GROUP, OPENING), seed=3).rollout.beginning(OPENING).clamp(min=4)
    return draw(sure, PROMPTS, Sampling(GROUP, LENGTH), seed=5, opening=given)


def exchanged(samples: Samples, generator: CausalLM, order: list[int]) -> Samples:
    """The same openings, with the tails of other samples of the group."""
    tokens_BGKT = samples.rollout.tokens_BGKT.clone()
    tokens_BGKT[..., OPENING:] = tokens_BGKT[:, order][..., OPENING:]
    return decoded(generator, samples.asked, replace(samples.rollout, tokens_BGKT=tokens_BGKT))


def test_the_own_opening_is_found_by_the_tail_alone(sure: CausalLM, samples: Samples) -> None:
    tails = [text.split(" ", OPENING)[-1] for text in samples.outputs]
    assert all(len(set(tails[row : row + GROUP])) == GROUP for row in range(0, len(tails), GROUP)), (
        "the point of the test"
    )
    embedder = EachTextApart()
    metric = Retention(embedder, sure, OPENING).load()
    for order, share in (([0, 1, 2, 3], 1.0), ([1, 0, 2, 3], 0.5), ([1, 2, 0, 3], 0.25), ([1, 2, 3, 0], 0.0)):
        metric.reset()
        metric.update(exchanged(samples, sure, order))
        assert metric.per_prompt().tolist() == [share] * 3
    assert set(embedder.seen) == set(tails)
    assert not metric.state_dict() and not list(metric.parameters())


def test_what_ends_within_the_opening_is_left_out(sure: CausalLM, samples: Samples) -> None:
    tokens_BGKT, mask_BGKT = samples.rollout.tokens_BGKT.clone(), samples.rollout.mask_BGKT.clone()
    tokens_BGKT[0, 1, 0, 1], mask_BGKT[0, 1, 0, 2:] = 2, False
    tokens_BGKT[1, :, 0, 1], mask_BGKT[1, :, 0, 2:] = 2, False
    ended = exchanged(decoded(sure, PROMPTS, replace(samples.rollout, tokens_BGKT=tokens_BGKT)), sure, [3, 1, 2, 0])
    ended = decoded(sure, PROMPTS, replace(ended.rollout, mask_BGKT=mask_BGKT))
    found = Retention(EachTextApart(), sure, OPENING).load().score(ended)
    torch.testing.assert_close(found, torch.tensor([1 / 3, torch.nan, 0.5]), equal_nan=True)
    alone = draw(sure, PROMPTS, Sampling(1, LENGTH))
    assert Retention(EachTextApart(), sure, OPENING).load().score(alone).isnan().all()


def test_a_prompt_is_scored_alike_in_any_batch_and_start_samples_have_their_own_noise(loose: CausalLM) -> None:
    whole = draw(loose, PROMPTS, Sampling(GROUP, 30), seed=2)
    lengths_B = whole.rollout.mask_BGKT.sum(-1).amax((1, 2))
    assert lengths_B.min() < lengths_B.max(), "a batch pads"
    metric = Retention(NGramCounts(1), loose, OPENING).load()
    together = metric.score(whole)
    apart = []
    for row, (prompt, length) in enumerate(zip(PROMPTS, lengths_B.tolist(), strict=True)):
        cells = (each[row : row + 1, ..., :length] for each in (whole.rollout.tokens_BGKT, whole.rollout.mask_BGKT))
        apart.append(metric.score(decoded(loose, [prompt], Rollout(*cells, torch.zeros(1)))))
    torch.testing.assert_close(together, torch.cat(apart), equal_nan=True)
    opening = whole.rollout.beginning(OPENING)[:1]
    start = StartModel(loose, Sampling(max_new_tokens=30)).draw(PROMPTS[0], GROUP, opening=opening).rollout
    assert torch.equal(start.beginning(OPENING), opening)
    behind = min(start.tokens_BGKT.shape[-1], whole.rollout.tokens_BGKT.shape[-1])
    assert (start.beginning(behind) != whole.rollout.beginning(behind)[:1])[..., OPENING:].any(-1).sum() >= GROUP - 1


def test_problems(sure: CausalLM, tmp_path) -> None:
    def keys(metric: Retention, context: Context = Context()) -> list[str]:
        return [problem.path for problem in metric.problems(context)]

    assert keys(Retention(EachTextApart(), sure), Context(length=17)) == []
    assert keys(Retention(EachTextApart(), sure), Context(length=16)) == ["opening"]
    assert keys(Retention(EachTextApart(), sure, 0)) == ["opening"]
    assert keys(Retention(EachTextApart(), CausalLM("./nothing"))) == ["generator.init_args.path"]
    assert keys(Retention(EachTextApart(), Dia(tiny_dia(tmp_path)))) == ["generator"]
    other = draw(sure, ["w1"], Sampling(2, LENGTH))
    other.outputs[0] = "another text"
    with pytest.raises(ConfigError, match=r"expected samples of models with its vocabulary"):
        Retention(EachTextApart(), sure).load().score(other)


def test_evaluate_refuses_an_opening_as_long_as_its_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spec = {"class_path": "cfg_distill.metrics.Retention", "init_args": {
        "embedder": {"class_path": "cfg_distill.tunes.embedder.Tunes"}, "opening": 20,
        "generator": {"class_path": "cfg_distill.generators.CausalLM", "init_args": {"path": "tunes:base"}}}}  # fmt: skip
    (tmp_path / "metrics.yaml").write_text(json.dumps({"kept": spec}))
    (tmp_path / "prompts.txt").write_text("a jig\n")
    words = ["--metrics", str(tmp_path / "metrics.yaml"), "--prompts", str(tmp_path / "prompts.txt")]
    words += ["--model", "tunes:base", "--max-new-tokens", "20", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *words]) == 2
    assert (
        "`kept.init_args.opening`: expected at least 1 token, and fewer than the 20 of a sample"
        in capsys.readouterr().err
    )
