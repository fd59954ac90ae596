import inspect

import pytest
import torch
from transformers import ClassifierFreeGuidanceLogitsProcessor

from cfg_distill import CFGDistillation
from cfg_distill.guidance import Guidance, guided_logits


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_same_distribution_as_transformers_processor(scale):
    torch.manual_seed(0)
    prompt, negative = torch.randn(5, 40), torch.randn(5, 40)
    if scale > 1:
        # transformers mixes log-probabilities of a batch whose second half is the negative branch
        scores = torch.cat([prompt, negative]).log_softmax(-1)
        theirs = ClassifierFreeGuidanceLogitsProcessor(scale)(torch.zeros(5, 1), scores)
    else:
        theirs = negative.log_softmax(-1) + scale * (prompt.log_softmax(-1) - negative.log_softmax(-1))
    torch.testing.assert_close(guided_logits(prompt, negative, scale).softmax(-1), theirs.softmax(-1))


def test_scale_one_is_the_prompt_to_the_bit_and_zero_the_negative():
    torch.manual_seed(0)
    prompt, negative = 1e4 * torch.randn(3, 7), torch.randn(3, 7)
    assert torch.equal(guided_logits(prompt, negative, 1.0), prompt)
    assert torch.equal(guided_logits(prompt, negative, 0.0), negative)


def test_schedules_go_from_scale_to_final_scale():
    position_T = torch.arange(12)
    for schedule in ("linear", "cosine"):
        guidance = Guidance(scale=3.0, schedule=schedule, final_scale=1.0, positions=8)
        scale_T = guidance.scale_at(position_T)
        assert scale_T[0] == 3.0
        assert scale_T[4].item() == pytest.approx(2.0)
        assert torch.equal(scale_T[8:], torch.ones(4))
        assert (scale_T.diff() <= 0).all()
    assert torch.equal(Guidance(scale=2.0).scale_at(position_T), torch.full((12,), 2.0))
    step = Guidance(1.0, schedule="step", final_scale=2.5, positions=8, step_at=0.5)
    assert step.scale_at(position_T).tolist() == [1.0] * 4 + [2.5] * 8 and step.strongest == 2.5


def test_a_constant_schedule_has_no_final_scale():
    """A recipe that sets the schedule back to constant may keep the key: nothing reads it, the model card neither."""
    constant = Guidance(2.0, final_scale=9.0)
    assert constant.scale_at(torch.arange(200)).unique().tolist() == [2.0] and constant.strongest == 2.0
    assert constant.moved == Guidance(2.0).moved


def test_active_only_where_a_second_pass_is_needed():
    assert not Guidance(scale=1.0).active
    assert Guidance(scale=0.0).active
    assert Guidance(scale=1.0, schedule="linear", final_scale=3.0).active


def test_problems_name_key_value_and_remedy():
    (negative,) = Guidance(scale=-1.0).problems()
    assert (negative.key, negative.prefix) == ("scale", "")
    said = str(negative.under("model.guidance"))
    assert "`model.guidance.scale`" in said and "-1" in said and "`model.guidance.negative`" in said
    option = negative.told({"scale": "--guidance", "negative": "--negative"})
    assert option.startswith("Option `--guidance`: ") and option.endswith("give it as `--negative`.")
    (missing,) = Guidance(scale=2.0, schedule="linear").problems()
    assert "Key `final_scale`" in str(missing)
    assert Guidance(scale=float("nan")).problems()
    assert not Guidance(scale=0.0).problems()


# Forbidden tokens: logits of minus infinity

INF = float("inf")
SCALES = [0.0, 0.5, 1.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", SCALES)
def test_a_forbidden_token_is_forbidden_or_unguided_but_never_nan(scale, dtype):
    #                     allowed, both forbid, prompt forbids, negative forbids
    prompt = torch.tensor([2.0, -INF, -INF, 1.0], dtype=dtype)
    negative = torch.tensor([1.0, -INF, 0.5, -INF], dtype=dtype)
    expected = {0.0: [1.0, -INF, 0.5, -INF], 0.5: [1.5, -INF, -INF, -INF], 1.0: [2.0, -INF, -INF, 1.0],
                3.0: [4.0, -INF, -INF, 1.0]}[scale]  # fmt: skip
    for gamma in (scale, torch.full((1,), scale, dtype=dtype)):
        found = guided_logits(prompt, negative, gamma)
        assert found.dtype == dtype and found.tolist() == expected
    assert guided_logits(prompt, negative, scale).softmax(-1).isfinite().all()


def test_the_branches_come_back_whole_at_scale_zero_and_one():
    torch.manual_seed(0)
    prompt, negative = torch.randn(4, 50), torch.randn(4, 50)
    prompt[torch.rand(4, 50) < 0.3] = -INF
    negative[torch.rand(4, 50) < 0.3] = -INF
    assert torch.equal(guided_logits(prompt, negative, 1.0), prompt)
    assert torch.equal(guided_logits(prompt, negative, 0.0), negative)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_minus_infinity_is_the_limit_of_very_small_logits(scale):
    """Where the formula's limit is a distribution; the negative branch's own bans above 1 have none."""
    torch.manual_seed(0)
    prompt, negative = torch.randn(2, 9, dtype=torch.float64)
    prompt[2:4] = negative[3] = -INF
    if scale < 1:
        negative[5] = -INF
    tiny = [logits.masked_fill(logits.isinf(), -1e6) for logits in (prompt, negative)]
    plain = tiny[1] + scale * (tiny[0] - tiny[1])
    plain[3] = -1e6  # both forbid it: equal logits stay what they are
    torch.testing.assert_close(guided_logits(prompt, negative, scale).softmax(-1), plain.softmax(-1))


def test_a_schedule_has_its_own_rule_at_each_position():
    prompt = torch.tensor([[0.0, -INF, 1.0]]).repeat(4, 1)
    negative = torch.tensor([[0.0, 1.0, -INF]]).repeat(4, 1)
    found = guided_logits(prompt, negative, torch.tensor(SCALES)[:, None])
    assert found.tolist() == [[0.0, 1.0, -INF], [0.0, -INF, -INF], [0.0, -INF, 1.0], [0.0, -INF, 1.0]]


def test_finite_logits_are_what_they_were_to_the_bit():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        prompt, negative = torch.randn(3, 5, 40).to(dtype), torch.randn(3, 5, 40).to(dtype)
        prompt[0, 0, 0] = torch.finfo(dtype).max  # the sum over all of them overflows
        negative[0, 0, 1] = torch.finfo(dtype).min
        prompt[1, 0, 0] = torch.nan  # a diverged model must be seen
        scale = torch.tensor([0.0, 0.3, 1.0, 2.0, 3.0], dtype=dtype)[:, None]
        found, plain = guided_logits(prompt, negative, scale), torch.lerp(negative, prompt, scale)
        assert torch.equal(found.nan_to_num(7.0), plain.nan_to_num(7.0)) and found.isnan().sum() == 1


def test_gradients_of_forbidden_tokens_are_zero_and_of_others_what_they_are():
    torch.manual_seed(0)
    prompt, negative = torch.randn(2, 6, dtype=torch.float64)
    prompt[1] = negative[1] = prompt[2] = negative[3] = -INF
    prompt.requires_grad_(), negative.requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    guided_logits(prompt, negative, scale).softmax(-1)[0].backward()
    assert prompt.grad.isfinite().all() and negative.grad.isfinite().all() and scale.grad.isfinite()
    assert prompt.grad[[1, 2]].tolist() == negative.grad[[1, 2]].tolist() == [0.0, 0.0]
    assert prompt.grad[[0, 3, 4, 5]].all() and negative.grad[[0, 4, 5]].all()
    # By finite differences of the allowed logits alone.
    allowed = prompt.detach()[[0, 3, 4, 5]].requires_grad_()

    def first(allowed):
        whole = prompt.detach().index_put((torch.tensor([0, 3, 4, 5]),), allowed)
        return guided_logits(whole, negative.detach(), 3.0).softmax(-1)[0]

    assert torch.autograd.gradcheck(first, (allowed,))
    torch.testing.assert_close(torch.autograd.grad(first(allowed), allowed)[0], prompt.grad[[0, 3, 4, 5]])


def test_one_default_of_gamma_in_code_and_recipe():
    in_recipe = inspect.signature(CFGDistillation).parameters["guidance"].default
    assert Guidance() == in_recipe and Guidance().scale == 3.0
