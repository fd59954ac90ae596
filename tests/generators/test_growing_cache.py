"""A cache that grows in place holds what transformers' own holds, and hands out its memory again."""

import pytest
import torch
from tiny_musicgen import tiny_musicgen
from transformers import LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from cfg_distill.generators import MusicGen
from cfg_distill.generators.growing_cache import ROOM, GrowingLayer, cache_argument, growing_cache
from cfg_distill.sampling import Sampling, rollout


def states(rows, positions, seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 2, positions, 4, generator=random) for _ in range(2)]


@torch.no_grad()
def test_positions_rows_and_cuts_are_those_of_a_dynamic_layer():
    ours, theirs = GrowingLayer(), DynamicLayer()
    for step in range(2 * ROOM):
        rows = 2 if step < 5 else 6
        if step == 5:
            for layer in (ours, theirs):
                layer.batch_repeat_interleave(3)
        if step == ROOM:
            for layer in (ours, theirs):
                layer.crop(-7)
        new = states(rows, 3 if step % 50 == 0 else 1, step)
        for got, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(got, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


@torch.no_grad()
def test_memory_is_taken_once_in_many_positions():
    layer = GrowingLayer()
    places = {layer.update(*states(1, 1, step))[0].data_ptr() for step in range(ROOM)}
    assert len(places) == 1
    plain = DynamicLayer()
    copies = []
    for step in range(3):
        copies.append(plain.update(*states(1, 1, step))[0])
    assert len({copy.data_ptr() for copy in copies}) == 3


def test_gradients_flow_as_in_a_dynamic_layer():
    layer = GrowingLayer()
    with torch.no_grad():
        layer.update(*states(1, 2, 0))
    keys, values = (part.requires_grad_() for part in states(1, 3, 1))
    all_keys, all_values = layer.update(keys, values)
    (all_keys.sum() + 2 * all_values.sum()).backward()
    assert (keys.grad == 1).all() and (values.grad == 2).all()
    with torch.no_grad():
        assert layer.update(*states(1, 1, 2))[0].shape[-2] == 6


def test_only_plain_layers_are_exchanged():
    assert {type(layer) for layer in growing_cache(LlamaConfig(num_hidden_layers=2)).layers} == {GrowingLayer}
    sliding = growing_cache(MistralConfig(num_hidden_layers=2, sliding_window=8)).layers
    assert not any(isinstance(layer, GrowingLayer) for layer in sliding)
    assert len(sliding) == 2


@pytest.mark.parametrize("kind", ["mono", "melody"])
def test_rollouts_are_the_same_to_the_bit(kind, tmp_path, monkeypatch):
    generator = MusicGen(tiny_musicgen(tmp_path, kind), melody="optional", text_positions=3).load().eval()
    sampling = Sampling(samples=3, max_new_tokens=40)
    grown = rollout(generator, ["rock", "jazz"], sampling)
    monkeypatch.setattr("cfg_distill.generators.musicgen.growing_cache", lambda config: DynamicCache(config=config))
    copied = rollout(generator, ["rock", "jazz"], sampling)
    assert torch.equal(grown.tokens_BGKT, copied.tokens_BGKT)
    assert torch.equal(grown.log_probs_BGKT, copied.log_probs_BGKT)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_passed_by_the_name_that_the_network_has(name):
    """transformers renamed the argument in 5.24 and drops the old name in 5.40; each release knows one of them."""

    class Old(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None, use_cache=None): ...

    class New(torch.nn.Module):
        def forward(self, input_ids, cache=None, use_cache=None, **kwargs): ...

    assert cache_argument({"cache": New, "past_key_values": Old}[name]()) == name
