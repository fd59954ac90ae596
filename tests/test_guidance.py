import pytest
import torch
from transformers import ClassifierFreeGuidanceLogitsProcessor

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


def test_active_only_where_a_second_pass_is_needed():
    assert not Guidance(scale=1.0).active
    assert Guidance(scale=0.0).active
    assert Guidance(scale=1.0, schedule="linear", final_scale=3.0).active


def test_problems_name_key_value_and_remedy():
    (negative,) = Guidance(scale=-1.0).problems()
    assert "`model.guidance.scale`" in negative and "-1.0" in negative and "`model.guidance.negative`" in negative
    (missing,) = Guidance(scale=2.0, schedule="linear").problems()
    assert "`model.guidance.final_scale`" in missing
    assert Guidance(scale=float("nan")).problems()
    assert not Guidance(scale=0.0).problems()
