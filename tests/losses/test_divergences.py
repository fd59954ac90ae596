import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from scipy.special import entr, rel_entr
from torch.distributions import Categorical, kl_divergence

from cfg_distill.losses import Loss, entropy_aware_kl, forward_kl, jensen_shannon, reverse_kl
from cfg_distill.losses.divergences import entropy_cells

DIVERGENCES = [reverse_kl, forward_kl, jensen_shannon, entropy_aware_kl]


def entropy(logits):
    return entropy_cells(logits.flatten(0, -2).log_softmax(-1)).sum()


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 3 * torch.randn(2, 5, 11), 3 * torch.randn(2, 5, 11)


def test_against_torch_distributions(logits):
    student, teacher = logits
    p, q = Categorical(logits=student), Categorical(logits=teacher)
    torch.testing.assert_close(reverse_kl(student, teacher)[0], kl_divergence(p, q).sum())
    torch.testing.assert_close(forward_kl(student, teacher)[0], kl_divergence(q, p).sum())
    torch.testing.assert_close(entropy(student), p.entropy().sum())
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
def test_without_a_cell_there_is_no_divergence(divergence, logits):
    """A late codebook of short samples has none."""
    student, teacher = logits
    value, count = divergence(student, teacher, torch.zeros(2, 5).bool())
    assert value == count == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_zero_at_equality_and_not_negative_in_half_precision(divergence, logits):
    student, _ = logits
    assert abs(divergence(student, student)[0].item()) < 1e-6
    half = student.bfloat16()
    assert divergence(half, half + 1e-3 * torch.randn_like(half))[0] >= -1e-6
    assert divergence(half, half)[0].dtype == torch.float32


@pytest.mark.parametrize("divergence", [*DIVERGENCES, lambda s, t: (entropy(s), None)])
def test_autocast_changes_nothing(divergence, logits):
    """Sums over a vocabulary in bfloat16 lose three digits, and a weight that passes through them is rounded."""
    found = []
    for enabled in (False, True):
        student = logits[0].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value, _ = divergence(student, logits[1])
        (0.7 * value).backward()
        found.append((value.detach(), student.grad))
    assert found[0][0].dtype == found[1][0].dtype == torch.float32
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient(divergence, logits):
    student, teacher = (tensor.double()[:1, :2] for tensor in logits)
    assert torch.autograd.gradcheck(lambda logits: divergence(logits, teacher)[0], student.requires_grad_())


def test_shapes_must_agree(logits):
    with pytest.raises(ValueError, match="one shape"):
        reverse_kl(logits[0], logits[1][:1])
    with pytest.raises(ValueError, match="`weight`"):
        jensen_shannon(*logits, weight=1.5)


def forbidding(logits, *columns):
    """The logits of a model that forbids some tokens."""
    logits = logits.clone()
    logits[..., list(columns)] = -torch.inf
    return logits


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_token_that_both_forbid_might_as_well_not_be_there(divergence, logits):
    """Value and gradient against the vocabulary without it; forbidden logits get no gradient."""
    student, teacher = (tensor.double() for tensor in logits)
    allowed = [0, 1, 3, 4, 6, 7, 8, 9]
    masked = forbidding(student, 2, 5, 10).requires_grad_()
    small = student[..., allowed].requires_grad_()
    value, _ = divergence(masked, forbidding(teacher, 2, 5, 10))
    expected, _ = divergence(small, teacher[..., allowed])
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(masked.grad[..., allowed], small.grad)
    assert masked.grad[..., [2, 5, 10]].eq(0).all()


def test_tokens_that_one_model_forbids_against_scipy(logits):
    """p log p/q is 0 where p is 0, and infinite where only q is: scipy's convention, and torch.distributions'."""
    student, teacher = (tensor.double() for tensor in logits)
    both, only_student, only_teacher = 2, 5, 10
    for extra in ((), (only_student,), (only_teacher,), (only_student, only_teacher)):
        s = forbidding(student, both, *[column for column in extra if column == only_student])
        t = forbidding(teacher, both, *[column for column in extra if column == only_teacher])
        p, q = s.softmax(-1).numpy(), t.softmax(-1).numpy()
        assert float(reverse_kl(s, t)[0]) == pytest.approx(rel_entr(p, q).sum())
        assert float(forward_kl(s, t)[0]) == pytest.approx(rel_entr(q, p).sum())
        assert reverse_kl(s, t)[0].isfinite() == (only_teacher not in extra)
        for weight in (0.2, 0.5):
            m = weight * q + (1 - weight) * p
            expected = (weight * rel_entr(q, m) + (1 - weight) * rel_entr(p, m)).sum() / (weight * (1 - weight))
            assert np.isfinite(expected)
            assert float(jensen_shannon(s, t, weight=weight)[0]) == pytest.approx(expected)
        assert float(entropy(s)) == pytest.approx(entr(p).sum())
        torch.testing.assert_close(
            reverse_kl(s, t)[0], kl_divergence(Categorical(logits=s), Categorical(logits=t)).sum()
        )


@pytest.mark.parametrize("divergence", [forward_kl, jensen_shannon, reverse_kl])
def test_the_gradient_is_finite_wherever_the_divergence_is(divergence, logits):
    """Against finite differences over the allowed tokens, where one model forbids more than the other."""
    student, teacher = (tensor.double()[:1, :2] for tensor in logits)
    if divergence is forward_kl:
        teacher = forbidding(teacher, 1, 2)
    columns = [0, 1, 3, 4] if divergence is forward_kl else [0, 3, 4]
    free = student[..., columns].clone().requires_grad_()

    def value(free):
        masked = torch.full((1, 2, 5), -torch.inf, dtype=torch.double)
        masked[..., columns] = free
        return divergence(masked, teacher[..., :5])[0]

    assert value(free).isfinite()
    assert torch.autograd.gradcheck(value, free)


def test_the_entropy_of_a_masked_vocabulary_has_a_gradient(logits):
    student = forbidding(logits[0].double(), 3).requires_grad_()
    small = logits[0].double()[..., [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]].requires_grad_()
    entropy(student).backward()
    entropy(small).backward()
    torch.testing.assert_close(student.grad[..., [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]], small.grad)
    assert student.grad[..., 3].eq(0).all()


def test_forward_kl_that_is_infinite_counts_only_where_the_teacher_is_uncertain(logits):
    student, teacher = logits
    sure = Categorical(logits=teacher).entropy().max().item() + 1
    student = forbidding(student, 4).requires_grad_()
    value, _ = entropy_aware_kl(student, teacher, threshold=sure)
    torch.testing.assert_close(value, reverse_kl(student.detach(), teacher)[0])
    value.backward()
    assert student.grad.isfinite().all()
    assert entropy_aware_kl(student, teacher, threshold=0.0)[0] == torch.inf


@pytest.mark.parametrize("divergence", [*DIVERGENCES, lambda s, t: (entropy(s), None)])
def test_nan_is_never_hidden(divergence, logits):
    student, teacher = logits
    for broken in (0, 1):
        pair = [forbidding(student, 2), forbidding(teacher, 2)]
        pair[broken][0, 0, 0] = torch.nan
        if broken == 0 or divergence in DIVERGENCES:
            assert divergence(*pair)[0].isnan()


@pytest.mark.parametrize(("name", "own"), [("JensenShannon", {"mixture": 0.3}), ("EntropyAwareKL", {"threshold": 1.0})])
def test_the_keys_of_every_divergence_reach_it_through_yaml(name, own):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Loss, "loss")
    keys = own | {"weight": 2.0, "warmup_steps": 3, "temperature": 1.5, "score_term": True, "codebook_weights": [1.0]}
    given = {"class_path": f"cfg_distill.losses.{name}", "init_args": keys}
    loss = parser.instantiate_classes(parser.parse_object({"loss": given})).loss
    expected = keys | {"codebook_weights": (1.0,)}
    assert {key: getattr(loss, key) for key in keys} == expected
    with pytest.raises(ArgumentError, match="wieght"):
        parser.parse_object({"loss": {"class_path": given["class_path"], "init_args": {"wieght": 2.0}}})
