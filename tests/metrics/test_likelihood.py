"""Log-likelihood and pointwise mutual information against transformers, one sample and one token at a time; entropy and
nucleus against torch.distributions and numbers of their own."""

import copy
import pickle

import pytest
import torch
from tiny import tiny_folder
from tiny_dia import tiny_dia
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.ladder import samples_of
from cfg_distill.generators import CausalLM, Dia, Guided, Head, HiddenStates, Logits
from cfg_distill.guidance import Guidance, guided_logits
from cfg_distill.metrics import (
    LogProbability,
    NucleusSize,
    PointwiseMutualInformation,
    SampledEntropy,
    log_likelihood,
    nucleus_sizes,
)
from cfg_distill.metrics.likelihood import Reader
from cfg_distill.sampling import Rollout, Sampling
from cfg_distill.sampling.samples import Samples, draw

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return CausalLM(tiny_folder(tmp_path_factory.mktemp("base"), scale=8.0)).load()


def by_hand(path, prompt_ids, tokens):
    """Sum of log p(token | all before), by one forward pass of transformers a token."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    ids, total = list(prompt_ids), 0.0
    for token in tokens:
        with torch.no_grad():
            total += model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
        ids.append(token)
    return total


def test_both_metrics_are_those_of_transformers_by_hand(base):
    samples = draw(base, PROMPTS, Sampling(samples=3, max_new_tokens=10), seed=1)
    lengths = samples.rollout.mask_NKT.sum((1, 2))
    assert lengths.min() < lengths.max(), "ragged samples are the point"
    expected = []
    for row in range(9):
        tokens = samples.rollout.tokens_NKT[row, 0][samples.rollout.mask_NKT[row, 0]].tolist()
        prompt = base.tokenizer(PROMPTS[row // 3])["input_ids"]
        expected.append([by_hand(base.path, start, tokens) / len(tokens) for start in (prompt, [1])])
    expected_BG2 = torch.tensor(expected).unflatten(0, (3, 3))
    for batch_size in (1, 2, 8):
        log_probability = LogProbability(CausalLM(base.path), batch_size).load()
        information = PointwiseMutualInformation(CausalLM(base.path), batch_size).load()
        for metric in (log_probability, information):
            metric.update(samples)
        torch.testing.assert_close(log_probability.per_prompt(), expected_BG2[..., 0].mean(1), rtol=0, atol=1e-4)
        difference_BG = expected_BG2[..., 0] - expected_BG2[..., 1]
        torch.testing.assert_close(information.per_prompt(), difference_BG.mean(1), rtol=0, atol=1e-4)
        assert difference_BG.abs().mean() > 0.05


def test_guidance_raises_the_information(base):
    """What it multiplies is p(y|x) / p(y), so its samples carry more of the prompt."""
    metric = PointwiseMutualInformation(base).load()
    means = []
    for scale in (0.0, 1.0, 3.0):
        metric.reset()
        metric.update(draw(base, PROMPTS, Sampling(samples=32, max_new_tokens=8), Guidance(scale), seed=2))
        means.append(float(metric.compute()))
    assert means[0] < means[1] - 0.1 < means[2] - 0.2


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_states_and_logits_and_chunks_agree_and_masked_cells_are_not_read(chunk):
    torch.manual_seed(0)
    states_NTD, head = torch.randn(4, 5, 8), Head(torch.randn(2, 11, 8), torch.randn(2, 11))
    tokens_NKT, mask_NKT = torch.randint(11, (4, 2, 5)), torch.rand(4, 2, 5) < 0.6
    whole_NKTV = head.all_logits(states_NTD).log_softmax(-1)
    picked_NKT = whole_NKTV.gather(-1, tokens_NKT[..., None])[..., 0].where(mask_NKT, 0.0)
    dirty_NKTV = head.all_logits(states_NTD).masked_fill(~mask_NKT[..., None], torch.nan)
    for predictions in (HiddenStates(states_NTD, head), Logits(dirty_NKTV)):
        torch.testing.assert_close(log_likelihood(predictions, tokens_NKT, mask_NKT, chunk), picked_NKT.sum((1, 2)))


def test_metrics_of_one_base_share_its_weights_and_answers(base, monkeypatch):
    first, second = (kind(CausalLM(base.path)).load() for kind in (LogProbability, PointwiseMutualInformation))
    assert first._reader is second._reader
    assert LogProbability(CausalLM(base.path, unconditional="w0"))._reader is not first._reader
    samples = draw(base, PROMPTS, Sampling(samples=2, max_new_tokens=4))
    asked = []
    plain = Reader._read
    monkeypatch.setattr(Reader, "_read", lambda self, *given: (asked.append(given[1]), plain(self, *given))[1])
    for metric in (first, second):
        metric.update(samples)
    assert asked == [True, False]
    again = draw(base, PROMPTS, Sampling(samples=2, max_new_tokens=4), seed=5)
    first.update(again)
    assert asked == [True, False, True]


def test_the_base_stays_out_of_states_and_copies(base):
    metric = PointwiseMutualInformation(CausalLM(base.path)).load()
    assert not list(metric.parameters())
    assert not metric.state_dict()
    assert copy.deepcopy(metric)._reader is metric._reader
    assert pickle.loads(pickle.dumps(metric))._reader is metric._reader


def test_samples_of_another_vocabulary_are_refused(base):
    metric = LogProbability(CausalLM(base.path)).load()
    samples = draw(base, ["w1"], Sampling(samples=2, max_new_tokens=4))
    samples.outputs[0] = "another text"
    with pytest.raises(ConfigError, match=r"expected samples of models with its vocabulary.*'another text'"):
        metric.update(samples)


def test_problems_are_those_of_the_base():
    found = LogProbability(CausalLM("./nothing"), batch_size=0).problems()
    assert any("`./nothing` does not exist" in str(problem) for problem in found)
    assert [problem.path for problem in found if "expected at least 1" in str(problem)] == ["batch_size"]


# Entropy and nucleus


@pytest.mark.parametrize(
    ("scale", "probs", "entropy", "nucleus"),
    [
        (1.0, [0.643914, 0.236883, 0.087144, 0.032059], 0.947537, 3),
        (1.5, [0.766064, 0.170932, 0.048973, 0.014031], 0.713687, 2),
        (3.0, [0.945683, 0.047083, 0.006372, 0.000862], 0.234993, 1),
    ],
)
def test_the_oracle_of_entropy_and_nucleus_under_guidance(scale, probs, entropy, nucleus):
    """The mean over draws is the sum over tokens v of p(v) times the metric of a prompt whose sample is v."""
    logits_V = guided_logits(torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.tensor([1.0, 1.0, 0.5, 0.0]), scale)
    torch.testing.assert_close(logits_V.softmax(-1), torch.tensor(probs), rtol=0, atol=1e-6)
    tokens_BGKT = torch.arange(4).view(4, 1, 1, 1)
    drawn = Rollout(tokens_BGKT, torch.ones_like(tokens_BGKT).bool(), logits_V.log_softmax(-1).view(4, 1, 1, 1))
    found_B = SampledEntropy().score(Samples(["x"] * 4, ["y"] * 4, drawn))
    assert (logits_V.softmax(-1) * found_B).sum().item() == pytest.approx(entropy, abs=1e-5)
    assert nucleus_sizes(logits_V).item() == nucleus == nucleus_sizes(logits_V[[2, 0, 3, 1]]).item()
    assert Sampling(top_p=0.9).probs(logits_V).count_nonzero().item() == nucleus


def test_the_sampled_entropy_has_the_expectation_of_the_entropy(base):
    """Against torch.distributions at every position of the samples: each drawn token, and the mean of many."""
    samples = draw(base, PROMPTS, Sampling(samples=400, max_new_tokens=6), Guidance(1.5), seed=3)
    drawn = samples.rollout
    assert drawn.length_N.min() < drawn.length_N.max(), "ragged samples are the point"
    law = Categorical(
        logits=Guided(base, Guidance(1.5)).predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole().float()
    )
    whole_B = [
        torch.stack(
            [values_NKT.unflatten(0, (3, 400))[row][mask_GKT].mean() for row, mask_GKT in enumerate(drawn.mask_BGKT)]
        )
        for values_NKT in (-law.log_prob(drawn.tokens_NKT), law.entropy())
    ]
    found_B = SampledEntropy().score(samples)
    torch.testing.assert_close(found_B, whole_B[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found_B, whole_B[1], rtol=0, atol=0.06)  # about three standard errors
    assert whole_B[1].min() > 0.3


def test_tokens_that_nobody_drew_have_no_entropy(base):
    """Neither those of an opening, nor those of written texts."""
    plain = draw(base, PROMPTS, Sampling(samples=8, max_new_tokens=6), seed=1)
    behind = draw(
        base, PROMPTS, Sampling(samples=8, max_new_tokens=6), seed=2, opening=plain.rollout.beginning(2)
    ).rollout
    expected_B = torch.stack([
        -log_probs_GKT[..., 2:][mask_GKT[..., 2:]].mean()
        for log_probs_GKT, mask_GKT in zip(behind.log_probs_BGKT, behind.mask_BGKT, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(SampledEntropy().score(Samples(PROMPTS, plain.outputs, behind)), expected_B)
    written = samples_of(PROMPTS, [["w1 w2", "w3"]] * 3, base, 8)
    assert SampledEntropy().score(written).isnan().all()


@pytest.mark.parametrize("guidance", [None, Guidance(1.0), Guidance(2.0), Guidance(2.0, drop="last_token")])
def test_the_nucleus_is_counted_token_by_token(base, guidance):
    samples = draw(base, PROMPTS, Sampling(samples=4, max_new_tokens=6), seed=1)
    drawn = samples.rollout
    predictor = base if guidance is None else Guided(base, guidance)
    probs_NKTV = predictor.predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole().float().softmax(-1)
    counts = [[], [], []]
    for row, _, position in drawn.mask_NKT.nonzero().tolist():
        held, count = 0.0, 0
        for probability in sorted(probs_NKTV[row, 0, position].tolist(), reverse=True):
            if held >= 0.7:
                break
            held, count = held + probability, count + 1
        counts[row // 4].append(count)
    expected_B = torch.tensor([sum(each) / len(each) for each in counts])
    for batch_size in (1, 4):
        found_B = NucleusSize(CausalLM(base.path), 0.7, guidance, batch_size).load().score(samples)
        torch.testing.assert_close(found_B, expected_B)


def test_entropy_and_nucleus_of_several_codebooks_are_over_all_their_cells(tmp_path):
    dia = Dia(tiny_dia(tmp_path, scale=2.0)).load()
    samples = draw(dia, ["hello", "a"], Sampling(samples=3, max_new_tokens=4), seed=1)
    drawn = samples.rollout
    assert drawn.tokens_BGKT.shape[2] > 1 and not drawn.mask_BGKT.all(), "codebooks with delays are the point"
    logits_NKTV = dia.predictions(samples.prompts, drawn.tokens_NKT, drawn.mask_NKT).whole().float()
    for metric, values_NKT in (
        (SampledEntropy(), -drawn.log_probs_NKT),
        (NucleusSize(Dia(dia.path), 0.8).load(), nucleus_sizes(logits_NKTV, 0.8)),
    ):
        values_BGKT = values_NKT.view_as(drawn.mask_BGKT)
        expected_B = torch.stack([values_BGKT[row][drawn.mask_BGKT[row]].mean() for row in (0, 1)])
        torch.testing.assert_close(metric.score(samples), expected_B)


def test_problems_of_the_nucleus(base, tmp_path):
    def paths(metric):
        return [problem.path for problem in metric.problems()]

    assert paths(NucleusSize(base, 0.5, Guidance(2.0, drop="last_token"))) == []
    assert paths(NucleusSize(base, 0.0, Guidance(-1.0))) == ["guidance.scale", "p"]
    dia = Dia(tiny_dia(tmp_path))
    assert paths(NucleusSize(dia, guidance=Guidance(2.0, drop="last_token"))) == ["guidance.drop"]
    assert NucleusSize(base)._reader is LogProbability(base)._reader
