"""Samples that begin with given tokens: an invariance, and nothing learnt of the given positions."""

from __future__ import annotations

import pytest
import torch
from tiny_fits import PROMPTS, FirstToken

from cfg_distill.generators import CausalLM, Logits
from cfg_distill.losses import Loss, LossInputs, PolicyGradient, ReverseKL, mix, token_log_probs
from cfg_distill.losses.chunked import Cells
from cfg_distill.sampling import Codes, Opening, Rollout, Sampling, rollout
from cfg_distill.sampling.opening import Opening as Same
from cfg_distill.sampling.samples import Samples


@pytest.mark.parametrize("drop_finished", [True, False])
def test_a_sample_under_its_own_opening_is_itself(tiny_model, drop_finished):
    """The same random numbers behind the same tokens; samples that end within the opening among them."""
    generator = CausalLM(tiny_model).load()
    sampling = Sampling(samples=6, max_new_tokens=10, drop_finished=drop_finished)
    plain = rollout(generator, PROMPTS[:3], sampling, seed=5)
    assert (plain.length_N < 4).any() and (plain.length_N > 4).any()
    again = rollout(generator, PROMPTS[:3], sampling, seed=5, opening=plain.beginning(4))
    assert again.opening == 4 and torch.equal(again.tokens_BGKT, plain.tokens_BGKT)
    assert torch.equal(again.mask_BGKT, plain.mask_BGKT)
    assert not again.log_probs_BGKT[..., :4].any()
    torch.testing.assert_close(again.log_probs_BGKT[..., 4:], plain.log_probs_BGKT[..., 4:])


def test_other_numbers_go_on_from_the_same_opening(tiny_model):
    generator, sampling = CausalLM(tiny_model).load(), Sampling(samples=4, max_new_tokens=8)
    start = rollout(generator, PROMPTS[:2], sampling, seed=5)
    for conditioner in (None, Codes(values=2, template="{label} {prompt}", words=["w9", "w10"])):
        drawn = rollout(generator, PROMPTS[:2], sampling, seed=6, opening=start.beginning(3), conditioner=conditioner)
        assert torch.equal(drawn.beginning(3), start.beginning(3))
        width = min(drawn.tokens_BGKT.shape[-1], start.tokens_BGKT.shape[-1])
        assert not torch.equal(drawn.tokens_BGKT[..., :width], start.tokens_BGKT[..., :width])


def test_nobody_chose_a_given_token():
    log_probs_MV = torch.randn(5, 3).log_softmax(-1).requires_grad_()
    position_M = torch.arange(5)
    cells = Cells(
        log_probs_MV, lambda: log_probs_MV, torch.tensor([0, 1, 2, 1, 0]), torch.zeros(5).long(), position_M, 0
    )
    values_M = token_log_probs(cells, Sampling(), opening=2)
    expected_M = log_probs_MV[position_M, cells.tokens_M] * (position_M >= 2)
    torch.testing.assert_close(values_M, expected_M)
    (gradient_MV,) = torch.autograd.grad(values_M.sum(), log_probs_MV)
    assert not gradient_MV[:2].any() and (gradient_MV[2:].sum(-1) == 1).all()


def test_an_opening_needs_a_position():
    assert Opening is Same and Opening().problems() == []
    assert [problem.key for problem in Opening(0).problems()] == ["tokens"]


@pytest.mark.parametrize("steps_behind", [0, 1])
def test_a_reward_and_a_score_term_teach_nothing_of_given_positions(steps_behind):
    """The divergence itself is learnt at all positions."""
    student_NKTV, teacher_NKTV = torch.randn(2, 2, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    student_NKTV.requires_grad_()
    tokens_BGKT = torch.tensor([[[[0, 1, 2, 3]], [[4, 3, 2, 1]]]])
    mask_BGKT = torch.ones_like(tokens_BGKT).bool()
    drawn = Rollout(tokens_BGKT, mask_BGKT, torch.full(tokens_BGKT.shape, -1.6), opening=2, steps_behind=steps_behind)
    samples = Samples(["a"], ["x", "y"], drawn)
    inputs = LossInputs(
        Logits(student_NKTV), Logits(teacher_NKTV), drawn.tokens_NKT, drawn.mask_NKT, Sampling(), samples
    )

    def gradient(loss: Loss) -> torch.Tensor:
        value, _ = mix({"": loss}, inputs, {"": 1.0}, {"": torch.tensor([1.0, -2.0])})
        return torch.autograd.grad(value, student_NKTV)[0].abs().sum((0, 1, 3))

    assert (gradient(PolicyGradient(FirstToken())) > 0).tolist() == [False, False, True, True]
    plain_T, exact_T = gradient(ReverseKL()), gradient(ReverseKL(score_term=True))
    assert (plain_T > 0).all() and (exact_T != plain_T).tolist() == [
        False,
        False,
        True,
        False,
    ]  # nothing is behind the last
