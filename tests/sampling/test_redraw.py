"""Degenerate samples drawn again: which are replaced, from which distribution, and what the gradient is then of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_fits import Even, batches, student_of, trainer

from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards.pairwise import mean_among_others, mean_with_others
from cfg_distill.sampling import Codes, Labels, Rollout
from cfg_distill.sampling.redraw import redrawn
from cfg_distill.sampling.samples import Samples


def groups(prompts: Sequence[Any], outputs: list[list[int]], length: int) -> Samples:
    """Samples whose tokens repeat the output ``length`` times."""
    tokens_BGKT = torch.tensor(outputs)[..., None, None].expand(-1, -1, 2, length).clone()
    drawn = Rollout(tokens_BGKT, torch.ones_like(tokens_BGKT).bool(), -tokens_BGKT.float())
    flat = [output for group in outputs for output in group]
    return Samples(list(prompts), flat, drawn, start=[f"start of {output}" for output in flat])


def odd(samples: Samples) -> torch.Tensor:
    return torch.tensor(samples.outputs).view(len(samples.prompts), -1) % 2 == 1


def test_a_sample_takes_the_draw_of_its_own_place() -> None:
    asked = []

    def draw(numbers: Sequence[int], attempt: int) -> Samples:
        asked.append((list(numbers), attempt))
        prompts = ["abc"[number] for number in numbers]
        return {
            1: groups(prompts, [[20, 22, 21], [30, 32, 34]], length=4),
            2: groups(prompts, [[40, 42, 44]], length=1),
        }[attempt]

    before = groups(["a", "b", "c"], [[1, 2, 3], [4, 6, 8], [5, 10, 12]], length=2)
    found, degenerate_BG, number = redrawn(before, odd, draw, attempts=3, pad_token=99)
    assert found.outputs == [20, 2, 44, 4, 6, 8, 30, 10, 12]
    assert found.start == [f"start of {output}" for output in found.outputs]
    assert asked == [([0, 2], 1), ([0], 2)]
    assert number == 3 and not degenerate_BG.any()
    drawn = found.rollout
    assert drawn.tokens_BGKT.shape == drawn.mask_BGKT.shape == drawn.log_probs_BGKT.shape == (3, 3, 2, 4)
    rows = drawn.tokens_BGKT[:, :, 0].flatten(0, 1).tolist()
    assert rows[:3] == [[20] * 4, [2, 2, 99, 99], [44, 99, 99, 99]]
    assert drawn.mask_BGKT[:, :, 0].sum(-1).tolist() == [[4, 2, 1], [2, 2, 2], [4, 2, 2]]
    assert drawn.log_probs_BGKT[0, 2, 1].tolist() == [-44, 0, 0, 0]
    assert before.outputs[0] == 1  # untouched


def test_it_gives_up_and_says_what_is_left() -> None:
    def draw(numbers: Sequence[int], attempt: int) -> Samples:
        return groups(["a"], [[11, 13]], 1)

    found, degenerate_BG, number = redrawn(groups(["a"], [[1, 2]], 1), odd, draw, attempts=2, pad_token=0)
    assert found.outputs == [1, 2] and degenerate_BG.tolist() == [[True, False]] and number == 0
    _, same_BG, _ = redrawn(groups(["a"], [[1, 2]], 1), odd, draw, attempts=0, pad_token=0)
    assert same_BG.tolist() == [[True, False]]


# The distribution and the gradient, by enumeration: a policy over four outcomes, two of them degenerate.

THETA_V = torch.tensor([0.3, -0.5, 0.9, 0.1], dtype=torch.float64)
BAD_V = torch.tensor([False, True, False, True])


def law(theta_V: torch.Tensor, attempts: int) -> torch.Tensor:
    """q(y) of the docstring."""
    p_V = theta_V.softmax(-1)
    d = p_V[BAD_V].sum()
    return torch.where(BAD_V, p_V * d**attempts, p_V * (1 - d ** (attempts + 1)) / (1 - d))


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_the_distribution_is_the_one_that_is_stated(attempts: int) -> None:
    """Every sequence of draws, as probabilities: the first sound one counts, or the last one's own first draw."""
    p_V = THETA_V.softmax(-1)
    expected_V = torch.zeros_like(p_V)
    for draws in torch.cartesian_prod(*[torch.arange(4)] * (attempts + 1)).view(-1, attempts + 1):
        sound = [int(y) for y in draws if not BAD_V[y]]
        expected_V[sound[0] if sound else int(draws[0])] += p_V[draws].prod()
    torch.testing.assert_close(law(THETA_V, attempts), expected_V)
    assert expected_V.sum() == pytest.approx(1)


@pytest.mark.parametrize("attempts", [0, 1, 2, 40])
def test_the_policy_gradient_is_that_of_the_conditional_objective_up_to_what_is_stated(attempts: int) -> None:
    """E_q[(1/G) sum_i 2 (r_i - b_i) grad log p(y_i)], against autograd of E_q r: equal at 0 attempts and at many."""
    pairs_VV = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs_VV = (pairs_VV + pairs_VV.T) * ~BAD_V * ~BAD_V[:, None]  # a degenerate sample earns nothing
    theta_V = THETA_V.clone().requires_grad_()
    q_V = law(theta_V, attempts)
    (wanted_V,) = torch.autograd.grad(q_V @ pairs_VV @ q_V, theta_V)
    groups_MG = torch.cartesian_prod(*[torch.arange(4)] * 3)
    pairs_MGG = pairs_VV[groups_MG[:, :, None], groups_MG[:, None, :]]
    advantage_MG = 2 * (mean_with_others(pairs_MGG) - mean_among_others(pairs_MGG))
    score_VV = torch.eye(4, dtype=torch.float64) - THETA_V.softmax(-1)
    weight_M = law(THETA_V, attempts)[groups_MG].prod(-1)
    found_V = torch.einsum("m,mg,mgv->v", weight_M, advantage_MG, score_VV[groups_MG]) / 3
    # The bias: minus the mean over samples of the advantage times grad log (q / p), which is one number for sound samples and
    # another for degenerate ones.
    ratio = theta_V.clone().detach().requires_grad_()
    log_ratio_V = law(ratio, attempts).log() - ratio.log_softmax(-1)
    surrogate = (weight_M[:, None] * advantage_MG * log_ratio_V[groups_MG]).sum() / 3
    (missing_V,) = torch.autograd.grad(surrogate, ratio)
    torch.testing.assert_close(found_V, wanted_V - missing_V)
    bias = (found_V - wanted_V).abs().max()
    assert bias < 1e-12 if attempts in (0, 40) else bias > 1e-3
    # With many attempts nothing is learnt of the degenerate samples: their share under p gets no gradient from the reward.
    if attempts == 40:
        assert wanted_V[BAD_V].abs().max() < 1e-12


# In a fit


@pytest.mark.parametrize("redraw", [0, 20])
def test_a_fit_counts_and_redraws(tiny_model: str, tmp_path: Path, redraw: int) -> None:
    seen: list[tuple[float, float, torch.Tensor, torch.Tensor]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
            logged = trainer.callback_metrics
            first_BG = outputs["samples"].rollout.tokens_BGKT[:, :, 0, 0]
            seen.append(
                (float(logged["train/degenerate"]), float(logged["train/redrawn"]), outputs["degenerate"], first_BG)
            )

    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(Even())}
    module = student_of(tiny_model, losses=losses, redraw=redraw)
    trainer([Look()], tmp_path).fit(module, batches(4))
    for share, _, degenerate_BG, first_BG in seen:
        assert torch.equal(degenerate_BG, first_BG % 2 == 1)
        assert share == pytest.approx(float(degenerate_BG.float().mean()))
    shares, redraws = [row[0] for row in seen], [row[1] for row in seen]
    if redraw:
        assert sum(shares) == 0 and sum(redraws) > 0
    else:
        assert sum(shares) > 0 and sum(redraws) == 0


def test_the_draws_of_an_attempt_are_its_own(tiny_model: str) -> None:
    module = student_of(tiny_model)
    first = [module._rollout_seed(3, range(2), attempt).uniform_NKT(1, 1, 1)[0].item() for attempt in range(4)]
    assert len(set(first)) == 4


@pytest.mark.parametrize("kind", [Labels, Codes])
def test_a_redraw_keeps_the_labels(tiny_model: str, tmp_path: Path, kind: Any) -> None:
    """A target and a knob belong to the label of a group, whose samples must all have it, drawn again or not."""
    found = {}
    for redraw in (0, 5):

        class Look(L.Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
                found.setdefault(redraw, []).append(outputs["samples"].rollout.labels_BG)  # noqa: B023

        losses = {"kl": ReverseKL(), "diversity": PolicyGradient(Even())}
        module = student_of(tiny_model, losses=losses, redraw=redraw, conditioner=kind(3))
        trainer([Look()], tmp_path).fit(module, batches(4))
    assert all(torch.equal(one, other) for one, other in zip(*found.values(), strict=True))
    assert len(torch.cat(found[0]).unique()) > 1
