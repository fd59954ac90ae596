"""A key-value cache that writes new positions in place. transformers' own copies all earlier positions at every step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 128
"""Positions that a cache grows by. The copying per position falls by this factor, and at most this many are spare."""


def growing_cache(config: Any) -> DynamicCache:
    """A ``DynamicCache`` whose plain layers grow in place; sliding windows and other layers stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_argument(network: nn.Module) -> str:
    """The name by which a network's forward takes its cache: ``cache`` since transformers 5.24, else ``past_key_values``."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"


def takes_cache(network: type) -> bool:
    """Whether the forward of a class of networks takes keys and values of earlier tokens. RWKV's, say, takes a state."""
    names = inspect.signature(network.forward).parameters  # type: ignore[attr-defined]
    return "cache" in names or "past_key_values" in names


class GrowingLayer(DynamicLayer):
    r"""Keys and values with spare room behind them; while gradients flow, a ``DynamicLayer`` as it is.

    One buffer holds the positions, and keys and values are views of its front::

        room   [ k0 k1 k2 k3 k4 |  .  .  . ]       the next position is written behind k4, without a copy
        keys   [ k0 k1 k2 k3 k4 ]
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._rooms: list[Tensor] = []
        self._front: Tensor | None = None  # the keys, as they were last written into their room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # Many positions onto a filled cache means scoring, not decoding: no spare room needed.
        if torch.is_grad_enabled() or (key_states.shape[-2] > 1 and self.get_seq_length()):
            self._rooms, self._front = [], None
            return super().update(key_states, value_states, *args, **kwargs)
        # Rotary positions are float32, and so are keys under autocast: attention would cast all of them at every position.
        if torch.is_autocast_enabled(key_states.device.type):
            key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = (key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if not self._has_room(end):
            self._rooms = [part.new_empty(*part.shape[:-2], end + ROOM, part.shape[-1]) for part in new]
            if begin and self.keys is not None and self.values is not None:
                for room, kept in zip(self._rooms, (self.keys, self.values), strict=True):
                    room[..., :begin, :] = kept
        for room, part in zip(self._rooms, new, strict=True):
            room[..., begin:end, :] = part
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        self._front = self.keys
        return self.keys, self.values

    def _has_room(self, end: int) -> bool:
        """Whether the room is long enough and the keys still lie in it: repeating rows makes new keys."""
        return bool(self._rooms) and self.keys is self._front and self._rooms[0].shape[-2] >= end
