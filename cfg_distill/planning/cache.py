"""What the keys and values of a rollout hold, and how they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from cfg_distill.generators.growing_cache import ROOM, GrowingLayer
from cfg_distill.planning.dry import bytes_of


class Cache(NamedTuple):
    """A cache of keys and values after the prompts, in bytes.

    Attributes:
        growing: per position, in the layers that keep all of them.
        sliding: per position, in the layers that keep a window.
        window: its positions.
        fixed: of all else: of what a text encoder said, for one.
        begun: the positions so far.
    """

    growing: int
    sliding: int
    window: int
    fixed: int
    begun: int

    def grown(self, num_new: int) -> int:
        """Bytes after new positions, in rooms: see :class:`GrowingLayer`."""
        size = self.begun
        if num_new > 1:
            size = self.begun + 1 + ROOM
            while size < self.begun + num_new - 1:
                size += 1 + ROOM
        return self.growing * size + self.sliding * min(self.begun + num_new, self.window)

    def read(self, length: int) -> int:
        """Bytes that a step at a length reads."""
        return self.growing * length + self.sliding * min(length, self.window) + self.fixed

    def seen(self, length: int) -> float:
        """Keys of a step at a length, as a mean over the layers that its attention grows in."""
        if self.begun + 1 > self.window:  # the attention of a full window grows no more, and counts among the products
            return float(length)
        share = self.sliding / max(self.growing + self.sliding, 1)
        return (1 - share) * length + share * min(length, self.window)


def _own(cache: Any) -> Any:
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def cache_of(cache: Any) -> Cache:
    """What a cache of transformers holds."""
    layers = list(_own(cache).layers)
    growing = [layer for layer in layers if isinstance(layer, GrowingLayer)]
    sliding = [layer for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    others = [layer for layer in layers if layer not in growing and layer not in sliding]
    if isinstance(cache, EncoderDecoderCache):
        others += cache.cross_attention_cache.layers
    window = max((layer.sliding_window for layer in sliding), default=0)
    begun = _own(cache).get_seq_length()
    return Cache(_per_position(growing), _per_position(sliding), window, bytes_of(_tensors(others)), begun)


def _tensors(layers: Sequence[Any]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]


def _per_position(layers: Sequence[Any]) -> int:
    return sum(each.numel() // each.shape[-2] * each.element_size() for each in _tensors(layers))


def num_layers(cache: Any) -> int:
    """Layers of a cache, at least 1."""
    return max(1, len(_own(cache).layers))
