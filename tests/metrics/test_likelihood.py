"""Log-likelihood and pointwise mutual information against transformers, one sample and one token at a time."""

import copy
import pickle

import pytest
import torch
from tiny import tiny_folder
from transformers import AutoModelForCausalLM

from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, Head, HiddenStates, Logits
from cfg_distill.guidance import Guidance
from cfg_distill.metrics import LogProbability, PointwiseMutualInformation, log_likelihood
from cfg_distill.metrics.likelihood import Reader
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw

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
