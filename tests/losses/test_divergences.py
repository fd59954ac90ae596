import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from cfg_distill.losses import entropy, entropy_aware_kl, forward_kl, jensen_shannon, reverse_kl

DIVERGENCES = [reverse_kl, forward_kl, jensen_shannon, entropy_aware_kl]


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 3 * torch.randn(2, 5, 11), 3 * torch.randn(2, 5, 11)


def test_against_torch_distributions(logits):
    student, teacher = logits
    p, q = Categorical(logits=student), Categorical(logits=teacher)
    torch.testing.assert_close(reverse_kl(student, teacher)[0], kl_divergence(p, q).sum())
    torch.testing.assert_close(forward_kl(student, teacher)[0], kl_divergence(q, p).sum())
    torch.testing.assert_close(entropy(student)[0], p.entropy().sum())
    for weight in (0.1, 0.5, 0.9):
        m = Categorical(probs=weight * q.probs + (1 - weight) * p.probs)
        expected = (weight * kl_divergence(q, m) + (1 - weight) * kl_divergence(p, m)).sum()
        value, _ = jensen_shannon(student, teacher, weight=weight)
        torch.testing.assert_close(value, expected / (weight * (1 - weight)))
    uncertain = q.entropy() > 1.0
    assert 0 < uncertain.sum() < 10
    expected = kl_divergence(p, q).sum() + kl_divergence(q, p)[uncertain].sum()
    torch.testing.assert_close(entropy_aware_kl(student, teacher, threshold=1.0)[0], expected)


def test_jensen_shannon_tends_to_the_two_kls(logits):
    student, teacher = (tensor.double() / 3 for tensor in logits)
    for weight, limit in ((0, forward_kl), (1, reverse_kl)):
        exact = limit(student, teacher)[0]
        assert jensen_shannon(student, teacher, weight=weight)[0] == exact
        near = jensen_shannon(student, teacher, weight=abs(weight - 1e-3))[0]
        assert near.item() == pytest.approx(exact.item(), rel=2e-2)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_cells_change_nothing_even_when_they_hold_nan(divergence, logits):
    student, teacher = logits
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    student = student.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    teacher = teacher.masked_fill(~mask[..., None], torch.nan)
    value, count = divergence(student, teacher, mask)
    value.backward()
    rows = [divergence(student[b, :n].detach(), teacher[b, :n])[0] for b, n in ((0, 3), (1, 5))]
    torch.testing.assert_close(value.detach(), sum(rows))
    assert count == 8
    assert student.grad[~mask].eq(0).all() and student.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_zero_at_equality_and_not_negative_in_half_precision(divergence, logits):
    student, _ = logits
    assert abs(divergence(student, student)[0].item()) < 1e-6
    half = student.bfloat16()
    assert divergence(half, half + 1e-3 * torch.randn_like(half))[0] >= -1e-6
    assert divergence(half, half)[0].dtype == torch.float32


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient(divergence, logits):
    student, teacher = (tensor.double()[:1, :2] for tensor in logits)
    assert torch.autograd.gradcheck(lambda logits: divergence(logits, teacher)[0], student.requires_grad_())


def test_shapes_must_agree(logits):
    with pytest.raises(ValueError, match="one shape"):
        reverse_kl(logits[0], logits[1][:1])
    with pytest.raises(ValueError, match="`weight`"):
        jensen_shannon(*logits, weight=1.5)
