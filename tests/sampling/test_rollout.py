"""The fast ways of a rollout against their plain twins, token for token."""

import pytest
import torch
from tiny import tiny_adapted, tiny_folder
from transformers import DynamicCache

from cfg_distill.generators import CausalLM, HiddenStates, Logits, causal_lm
from cfg_distill.generators.base import DecodingState
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling, rollout

PROMPTS = ["w0 w1 w2", "w3", "w4 w5"]


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return CausalLM(tiny_folder(tmp_path_factory.mktemp("tiny"), scale=2.0)).load()


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("fast", ["pack_weights", "drop_finished"])
def test_fast_and_plain_draw_the_same(generator, fast, scale, monkeypatch):
    dropped = []
    keep = DecodingState.keep_
    monkeypatch.setattr(DecodingState, "keep_", lambda state, rows: dropped.append(len(rows)) or keep(state, rows))
    plain = {"pack_weights": False, "drop_finished": False}
    settings = {"samples": 6, "max_new_tokens": 24, "temperature": 0.9, "top_p": 0.95}
    twins = [
        rollout(generator, PROMPTS, Sampling(**settings, **plain | {fast: on}), Guidance(scale), seed=3)
        for on in (True, False)
    ]
    assert torch.equal(twins[0].tokens_BGKT, twins[1].tokens_BGKT)
    assert torch.equal(twins[0].mask_BGKT, twins[1].mask_BGKT)
    torch.testing.assert_close(twins[0].log_probs_BGKT, twins[1].log_probs_BGKT, rtol=1e-4, atol=1e-4)
    assert bool(dropped) == (fast == "drop_finished")
    assert len(twins[0].length_N.unique()) > 3


@pytest.mark.parametrize("fast", ["prompt_once", "mix_states", "growing_cache"])
def test_fast_and_plain_read_the_same(generator, fast, monkeypatch):
    twins, rows, states = [], [], []
    repeat = HiddenStates.repeat
    monkeypatch.setattr(HiddenStates, "repeat", lambda found, n: rows.append(n) or repeat(found, n))
    for kind in (HiddenStates, Logits):
        whole = kind.whole
        seen = lambda found, whole=whole: states.append(isinstance(found, HiddenStates)) or whole(found)  # noqa: E731
        monkeypatch.setattr(kind, "whole", seen)
    for on in (True, False):
        monkeypatch.setattr(generator, "prompt_once", on or fast != "prompt_once")
        if not on and fast == "growing_cache":
            monkeypatch.setattr(causal_lm, "growing_cache", lambda config: DynamicCache(config=config))
        guidance = Guidance(2.0, mix_states=on or fast != "mix_states")
        rows.clear()
        states.clear()
        twins.append(rollout(generator, PROMPTS, Sampling(samples=6, max_new_tokens=24), guidance, seed=3))
        assert rows == [6 if on or fast != "prompt_once" else 1]
        assert all(states) == (on or fast != "mix_states")
    assert torch.equal(twins[0].tokens_BGKT, twins[1].tokens_BGKT)
    torch.testing.assert_close(twins[0].log_probs_BGKT, twins[1].log_probs_BGKT, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_sampled_with(tmp_path):
    folder = tiny_folder(tmp_path)
    generator = tiny_adapted(folder)
    fast, plain = (rollout(generator, PROMPTS, Sampling(max_new_tokens=20, pack_weights=on)) for on in (True, False))
    base = rollout(CausalLM(folder).load(), PROMPTS, Sampling(max_new_tokens=20))
    assert torch.equal(fast.tokens_BGKT, plain.tokens_BGKT)
    assert fast.tokens_BGKT.shape != base.tokens_BGKT.shape or not torch.equal(fast.tokens_BGKT, base.tokens_BGKT)


def test_log_probabilities_are_float32_whatever_the_default_dtype(tiny_model):
    generator = CausalLM(tiny_model).load()
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn = rollout(generator, ["w1"], Sampling(samples=2, max_new_tokens=4))
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.log_probs_BGKT.dtype == torch.float32
