"""Off-policy distillation: fine-tuning on samples of the guided teacher, against torch's cross entropy on the same samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_fits import PROMPTS, FirstToken, batches, student_of, trainer
from torch.nn.functional import cross_entropy

from cfg_distill.distillation.off_policy import to_learn_from
from cfg_distill.generators import CausalLM, Guidance, Guided
from cfg_distill.losses import CrossEntropy, ForwardKL, JensenShannon, Loss, PolicyGradient, ReverseKL
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples, draw

SAMPLING = Sampling(samples=3, max_new_tokens=8)


def fine_tuned(folder: str, losses: dict[str, Loss] | None = None, **settings: Any) -> Any:
    losses = losses or {"nll": CrossEntropy()}
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731 - so that a step is the gradient
    return student_of(folder, losses=losses, off_policy=True, reduction="sum", optimizer=optimizer, **settings)


def guided(folder: str, seed: int) -> tuple[CausalLM, Samples]:
    """A model of its own, and the samples that it draws under guidance."""
    plain = CausalLM(folder).load()
    return plain, draw(plain, PROMPTS[:2], SAMPLING, Guidance(2.0), seed)


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_a_step_is_the_gradient_of_torchs_cross_entropy_on_guided_samples(tiny_model: str, micro_batch: int):
    module = fine_tuned(tiny_model, micro_batch=micro_batch)
    trainer([], max_steps=1).fit(module, batches(1))
    plain, samples = guided(tiny_model, module._rollout_seed(0, range(2)))
    plain.requires_grad_(True)
    total: Any = 0.0
    tokens_NT, mask_NT = samples.rollout.tokens_NKT[:, 0], samples.rollout.mask_NKT[:, 0]
    for row, (tokens_T, mask_T) in enumerate(zip(tokens_NT, mask_NT, strict=True)):
        asked, own = plain.tokenizer(samples.prompts[row // 3], return_tensors="pt")["input_ids"][0], tokens_T[mask_T]
        logits = plain.model(torch.cat([asked, own])[None]).logits[0, len(asked) - 1 : -1]
        total = total + cross_entropy(logits, own, reduction="sum")
    (total / 6).backward()
    trained = dict(module.student.named_parameters())
    moved = 0.0
    for name, before in plain.named_parameters():
        torch.testing.assert_close(before - trained[name].detach(), before.grad, rtol=1e-4, atol=1e-5)
        moved += float(before.grad.abs().sum())
    assert moved > 1


def test_the_student_validates_and_is_drawn_by_itself(tiny_model: str):
    module = fine_tuned(tiny_model)
    module.configure_model()
    _, wanted = guided(tiny_model, 5)
    assert to_learn_from(module, PROMPTS[:2], 5).outputs == wanted.outputs
    own = draw(CausalLM(tiny_model).load(), PROMPTS[:2], SAMPLING, None, 5)
    assert module.draw(PROMPTS[:2], 5).outputs == own.outputs != wanted.outputs


def test_cross_entropy_asks_the_teacher_for_samples_alone(tiny_model: str, monkeypatch: pytest.MonkeyPatch):
    asked = []
    own = Guided.predictions
    monkeypatch.setattr(Guided, "predictions", lambda self, *rest: asked.append(1) or own(self, *rest))
    for losses, every, times in (
        ({"nll": CrossEntropy()}, 0, 0),
        ({"kl": ForwardKL()}, 0, 2),
        ({"nll": CrossEntropy()}, 1, 4),
    ):
        asked.clear()
        module = fine_tuned(tiny_model, losses, measure_gradients_every=every)
        trainer([], max_steps=2).fit(module, batches(2))
        assert len(asked) <= times and bool(asked) == bool(times), losses


def test_forward_kl_off_policy_is_in_expectation_the_gradient_of_cross_entropy(tiny_model: str):
    """A step of each on the same samples: alike in direction, since the expected gradients are equal."""
    steps = []
    for losses in ({"nll": CrossEntropy()}, {"kl": ForwardKL()}):
        module = fine_tuned(tiny_model, losses, sampling=Sampling(samples=256, max_new_tokens=8))
        trainer([], max_steps=1).fit(module, batches(1))
        before = CausalLM(tiny_model).load()
        steps.append(
            torch.cat(
                [
                    (a - b).detach().flatten()
                    for a, b in zip(before.parameters(), module.student.parameters(), strict=True)
                ]
            )
        )
    assert torch.cosine_similarity(*steps, dim=0) > 0.9
    assert (steps[0].norm() / steps[1].norm() - 1).abs() < 0.2


@pytest.mark.parametrize(
    ("losses", "off_policy", "told"),
    [
        ({"nll": CrossEntropy()}, False, "Key `losses.nll`: expected `model.off_policy` to be true"),
        ({"kl": ReverseKL(), "d": PolicyGradient(FirstToken())}, True, "Key `losses.d`: expected no reward"),
        ({"kl": JensenShannon(score_term=True)}, True, "Key `losses.kl`: expected no `score_term`"),
    ],
)
def test_losses_that_do_not_suit_the_samples_are_refused(
    tiny_model: str, losses: dict[str, Loss], off_policy: bool, told: str
):
    found = [str(each) for each in student_of(tiny_model, losses=losses, off_policy=off_policy).problems()]
    assert any(each.startswith(told) for each in found), found
    assert fine_tuned(tiny_model).problems() == []
