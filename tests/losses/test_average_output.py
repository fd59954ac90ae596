"""Average output, as a loss and as a reward: numeric oracles, and gradients against autograd on a tiny policy."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Context
from cfg_distill.generators import Logits
from cfg_distill.losses import LossInputs, MinAvgOut, mix
from cfg_distill.rewards import AvgOutScore
from cfg_distill.sampling import Rollout, Sampling
from cfg_distill.sampling.samples import Samples

D_V = torch.tensor([0.5, 0.3, 0.2])
ORACLE_V = torch.tensor([0.2, -0.4, 0.1])
HALF_COLLISION = torch.tensor([0.022592, -0.028731, 0.006139])


def start(vocabulary: tuple[int, int] = (1, 3), ends: tuple[int, ...] = ()) -> Any:
    """What a start model says of its vocabulary."""
    return SimpleNamespace(vocabulary=lambda: vocabulary, generator=SimpleNamespace(end_tokens=ends))


def samples_of(rows: list[list[int]], group: int) -> Samples:
    """Groups of samples of these tokens; behind the last one stands a token that no vocabulary has."""
    longest = max(map(len, rows))
    tokens_NKT = torch.tensor([[row + [99] * (longest - len(row))] for row in rows])
    mask_NKT = torch.tensor([[[True] * len(row) + [False] * (longest - len(row))] for row in rows])
    shape = (len(rows) // group, group)
    tokens_BGKT, mask_BGKT = (each.unflatten(0, shape) for each in (tokens_NKT, mask_NKT))
    drawn = Rollout(tokens_BGKT, mask_BGKT, torch.zeros(tokens_BGKT.shape))
    return Samples(["a"] * shape[0], [f"w{row}" for row in rows], drawn)


def inputs_of(samples: Samples, logits_NKTV: Tensor, rows: slice = slice(None)) -> LossInputs:
    drawn = samples.rollout
    predicted = Logits(logits_NKTV[rows])
    tokens_NKT = torch.where(drawn.mask_NKT, drawn.tokens_NKT, 0)[rows]
    return LossInputs(predicted, predicted, tokens_NKT, drawn.mask_NKT[rows], Sampling(), samples, rows)


def known(part: Any) -> Any:
    part.attach(start())
    part.past.value.copy_(D_V[None])
    return part


def test_the_oracle_of_the_loss():
    logits_NKTV = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]).log().view(1, 1, 2, 3).requires_grad_()
    samples = samples_of([[0, 1]], group=1)
    loss = known(MinAvgOut().eval())
    value = loss(inputs_of(samples, logits_NKTV))
    assert value.item() == pytest.approx(0.72, abs=1e-6)
    (gradient,) = torch.autograd.grad(value, logits_NKTV)
    expected = torch.tensor([[0.049, -0.026, -0.023], [0.021, 0.006, -0.027]]).view(1, 1, 2, 3)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)
    # D' = (.4, .4, .2) is folded in behind: D becomes .99 D + .01 D'.
    loss.train().past.updates += 1000
    loss.advantage(samples_of([[0, 0, 1, 1, 2]], group=1))
    torch.testing.assert_close(loss.past.value, torch.tensor([[0.499, 0.301, 0.2]]), rtol=0, atol=1e-6)
    # With D at rest: half the gradient of the collision probability.
    theta_V = ORACLE_V.clone().requires_grad_()
    loss.past.value.copy_(ORACLE_V.softmax(-1)[None])
    loss.eval()(inputs_of(samples_of([[0]], group=1), theta_V.view(1, 1, 1, 3))).backward()
    torch.testing.assert_close(theta_V.grad, HALF_COLLISION, rtol=0, atol=1e-5)
    collision = torch.func.grad(lambda theta_V: theta_V.softmax(-1).square().sum() / 2)(ORACLE_V)
    torch.testing.assert_close(collision, HALF_COLLISION, rtol=0, atol=1e-5)


def test_the_oracle_of_siblings():
    """Predictions (.7, .2, .1), (.1, .6, .3), (.2, .2, .6), and samples with just these shares: dots .22, .24, .32."""
    shares = [[7, 2, 1], [1, 6, 3], [2, 2, 6]]
    rows = [[token for token, number in enumerate(share) for _ in range(number)] for share in shares]
    samples = samples_of(rows + rows, group=3)
    logits_NKTV = (torch.tensor(shares + shares).float() / 10).log()[:, None, None].expand(-1, 1, 10, -1)
    loss = MinAvgOut(scope="siblings")
    loss.attach(start())
    per_sample = torch.tensor([0.23, 0.27, 0.28] * 2)
    assert loss(inputs_of(samples, logits_NKTV)).item() == pytest.approx(10 * per_sample.sum().item(), abs=1e-4)
    advantages: dict[str, Any] = {"": loss.advantage(samples)}
    parts = [
        mix({"": loss}, inputs_of(samples, logits_NKTV, slice(n, n + 2)), {"": 1.0}, advantages)[0] for n in (0, 2, 4)
    ]
    assert [part.item() / 10 for part in parts] == pytest.approx(per_sample.view(3, 2).sum(1).tolist(), abs=1e-5)


@pytest.mark.parametrize("group", [2, 3, 4])
def test_siblings_give_the_truncated_gradient(group):
    """Over all groups: the mean gradient per sample is that of half the collision. No token was drawn by what the loss
    differentiates, so there is no baseline."""
    rows = [*itertools.product(range(3), repeat=group)]
    samples = samples_of([[token] for row in rows for token in row], group)
    theta_V = ORACLE_V.clone().requires_grad_()
    loss = MinAvgOut(scope="siblings")
    loss.attach(start())
    inputs = inputs_of(samples, theta_V.expand(len(rows) * group, 1, 1, -1))
    inputs.advantage_N = loss.advantage(samples)
    probability_B = ORACLE_V.softmax(-1)[torch.tensor(rows)].prod(-1)

    def gradient() -> Tensor:
        cells = SimpleNamespace(
            student_log_probs_MV=inputs.student.whole()[:, 0, 0].log_softmax(-1),
            row_M=torch.arange(len(rows) * group),
            codebook=0,
        )
        value = loss.cells(inputs)(cells) @ probability_B.repeat_interleave(group) / group
        return torch.autograd.grad(value, theta_V)[0]

    torch.testing.assert_close(gradient(), HALF_COLLISION, rtol=0, atol=1e-5)


def test_the_oracle_of_the_score():
    samples = samples_of([[0, 1, 1], [2, 2], [0]], group=3)
    outcome = known(AvgOutScore().eval())(samples)
    torch.testing.assert_close(outcome.reward_BG, torch.tensor([[0.633333, 0.8, 0.5]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        outcome.advantage_BG, torch.tensor([[-0.016667, 0.233333, -0.216667]]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("group", [2, 3, 4])
def test_the_score_gives_the_true_gradient(group):
    """With the mean of the whole group as the baseline it is (G - 1) / G of it: half at G = 2."""
    rows = [*itertools.product(range(3), repeat=group)]
    outcome = known(AvgOutScore().eval())(samples_of([[token] for row in rows for token in row], group))
    p_V = ORACLE_V.double().softmax(-1)
    score_BGV = (torch.eye(3) - p_V)[torch.tensor(rows)]
    probability_B = p_V[torch.tensor(rows)].prod(-1)
    expected = torch.func.grad(lambda theta_V: theta_V.softmax(-1) @ (1 - D_V.double()))(ORACLE_V.double())
    naive_BG = outcome.reward_BG - outcome.reward_BG.mean(-1, keepdim=True)
    for advantage_BG, share in ((outcome.advantage_BG, 1), (naive_BG, (group - 1) / group)):
        found = torch.einsum("b,bg,bgv->v", probability_B, advantage_BG.double(), score_BGV) / group
        assert (found - share * expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_past_is_read_before_it_moves_and_resumes():
    one, two = samples_of([[0, 0, 0, 1], [0, 2]], group=2), samples_of([[2], [2, 2, 1]], group=2)
    for part, read in (
        (AvgOutScore(momentum=0.5), lambda part, samples: part(samples).reward_BG),
        (MinAvgOut(momentum=0.5), lambda part, samples: part.advantage(samples)),
    ):
        part.attach(start())
        first = read(part, one)
        assert first.eq(first.flatten()[0]).all()  # nothing is known: nothing pulls
        torch.testing.assert_close(part.past.value, torch.tensor([[4 / 6, 1 / 6, 1 / 6]]))
        resumed = type(part)(momentum=0.5)
        resumed.attach(start())
        resumed.load_state_dict(part.state_dict())
        assert torch.equal(read(part, two), read(resumed, two)) and torch.equal(part.past.value, resumed.past.value)
        before = part.past.value.clone()
        torch.testing.assert_close(before, torch.tensor([[4 / 12, 1 / 12 + 1 / 8, 1 / 12 + 3 / 8]]))
        read(part.eval(), one)
        assert torch.equal(part.past.value, before)


def test_ignored_tokens_have_no_share_and_empty_samples_no_value():
    score = AvgOutScore(ignored_tokens=[1])
    score.attach(start(ends=(2,)))
    samples = samples_of([[0, 0, 1, 2], [1, 1, 1, 2]], group=2)
    samples.outputs[1] = " "
    score(samples)
    torch.testing.assert_close(score.past.value, torch.tensor([[0.25, 0.0, 0.0]]))  # of all tokens
    torch.testing.assert_close(score(samples).reward_BG, torch.tensor([[1 - 0.125, 0.0]]))


def test_wrong_settings_are_named():
    def keys(part: Any, **context: Any) -> list[str]:
        return [problem.path for problem in part.problems(Context(**context))]

    assert keys(MinAvgOut(momentum=1.0, scope="group", ignored_tokens=[-1])) == ["momentum", "ignored_tokens", "scope"]
    assert keys(MinAvgOut(scope="siblings"), samples=1) == ["model.sampling.samples"]
    assert keys(AvgOutScore(momentum=-0.1)) == ["momentum"]
    with pytest.raises(ConfigError, match=r"Key `ignored_tokens`: expected numbers below 3, .* but got 7"):
        AvgOutScore(ignored_tokens=[7]).attach(start())


def test_each_codebook_has_its_own_average_and_its_own_cells():
    """Tokens 0, 0, 1 of the first codebook and 2, 2 of the second, which has no cell in the last frame."""
    tokens_BGKT = torch.tensor([[[[0, 0, 1], [2, 2, 0]]]]).expand(1, 2, -1, -1)
    mask_BGKT = torch.tensor([[[[True, True, True], [True, True, False]]]]).expand(1, 2, -1, -1)

    def read(mask_BGKT: Tensor) -> Samples:
        return Samples(["a"], ["x", "y"], Rollout(tokens_BGKT, mask_BGKT, torch.zeros(tokens_BGKT.shape)))

    samples, average_KV = read(mask_BGKT), torch.tensor([[2 / 3, 1 / 3, 0.0], [0.0, 0.0, 1.0]])
    score, loss = AvgOutScore(momentum=0.5), MinAvgOut(momentum=0.5)
    for part, reads in ((score, score), (loss, loss.advantage)):
        part.attach(start((2, 3)))
        reads(samples)
        torch.testing.assert_close(part.past.value, average_KV)
    # (2/3 + 2/3 + 1/3 + 1 + 1) / 5 of the five tokens.
    torch.testing.assert_close(score.eval()(samples).reward_BG, torch.full((1, 2), 1 - 11 / 15))
    probs_NKTV = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])[None, :, None].expand(2, 2, 3, 3)
    value = loss.eval()(inputs_of(samples, probs_NKTV.log()))
    assert value.item() == pytest.approx(2 * (3 * (1.4 + 0.2) / 3 + 2 * 0.3), abs=1e-5)
    siblings = MinAvgOut(scope="siblings")
    siblings.attach(start((2, 3)))
    torch.testing.assert_close(siblings.advantage(samples), average_KV.expand(2, -1, -1))
    # Where every sample ends at once, the second codebook has no cell at all: it keeps its mean.
    first_alone = torch.tensor([[[[True, False, False], [False] * 3]]]).expand(1, 2, -1, -1)
    for part, reads in ((score, score), (loss, loss.advantage)):
        part.train()
        reads(read(first_alone))
        torch.testing.assert_close(part.past.value, torch.tensor([[5 / 6, 1 / 6, 0.0], [0.0, 0.0, 1.0]]))
