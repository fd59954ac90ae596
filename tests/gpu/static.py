"""Decoding with a static cache: every tensor of a step stays where it is, so that the step can be captured as a CUDA graph.

Shapes: N rows, R rows that the network sees (2 N under guidance), K codebooks, T positions, L positions of the cache, V
vocabulary.

This is a measurement, not a sampler of the package: rows that have ended are decoded to the end, and there is one loop for
causal language models and one for MusicGen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, StaticCache

from cfg_distill.generators import CausalLM, MusicGen
from cfg_distill.generators.guided import with_negatives
from cfg_distill.generators.predictions import Head
from cfg_distill.guidance import Guidance, guided_states
from cfg_distill.sampling import Sampling, Seeds
from cfg_distill.sampling.distribution import draw_tokens


class StaticDecoder:
    """Draws G samples per prompt; the first call prepares what later calls use again.

    Two traps, which this class is built around:

    1. The length of a static cache is a number on the device. Code that asks for it, as MusicGen's table of positions does to
       see whether it is long enough, waits for the device, and cannot be captured. So masks and positions are made here, of
       counters on the device, and the table is asked without that question.
    2. A graph replays addresses. Whatever is new per rollout (the prompt's keys and values, random numbers, weights that were
       cast or moved) must be copied into the old place; a new tensor would never be seen. And what a replay returns is
       overwritten by the next one: each position is copied out inside the graph.

    Args:
        generator: loaded, on its device.
        sampling: G, T and the distribution.
        guidance: samples under guidance.
        compiled: let ``torch.compile`` make the kernels of network and head.
        captured: replay a CUDA graph of the whole step. It may be set between two calls.
    """

    def __init__(
        self,
        generator: CausalLM | MusicGen,
        sampling: Sampling,
        guidance: Guidance | None = None,
        compiled: bool = False,
        captured: bool = False,
    ) -> None:
        self.generator, self.sampling, self.guidance, self.captured = generator, sampling, guidance, captured
        self.is_sound = isinstance(generator, MusicGen)
        self.delays = torch.tensor(generator.delays, device=generator.device)
        self.num_columns = sampling.max_new_tokens + max(generator.delays)
        self.network: Any = torch.compile(self._states, dynamic=False) if compiled else self._states
        self.graph: torch.cuda.CUDAGraph | None = None
        self.cache: Any = None
        if self.is_sound:
            _without_its_question(generator.model.model.decoder.embed_positions)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], seed: int = 0) -> Tensor:
        """Tokens, ``[N, K, T]``; those of :func:`cfg_distill.sampling.rollout` with the same seed, but for rounding."""
        self._begin(prompts, seed)
        if self.captured and self.graph is None:
            self._capture()
            self._begin(prompts, seed)
        for _ in range(self.num_columns - 1):
            if self.captured and self.graph is not None:
                self.graph.replay()
            else:
                self._step()
        return self.tokens_NKT

    # The beginning of a rollout

    def _begin(self, prompts: Sequence[str], seed: int) -> None:
        asked: list[str | None] = list(prompts)
        if self.guidance is not None:
            asked = with_negatives(self.generator, prompts, self.guidance)
        state, first = self.generator.prefill(asked, self.sampling.samples)
        device, num_rows = self.generator.device, len(prompts) * self.sampling.samples
        begun = state.cache.get_seq_length()
        seeds = Seeds.of(seed, len(prompts))
        uniform_NKT = seeds.uniform_NKT(self.sampling.samples, len(self.delays), self.num_columns).to(device)
        is_new = self.cache is None
        if is_new:
            length = begun + self.num_columns
            self.index_L = torch.arange(length, device=device)
            self.uniform_NKT = uniform_NKT
            self.column = torch.zeros(1, dtype=torch.long, device=device)
            self.position = torch.zeros(1, dtype=torch.long, device=device)
            shape = (num_rows, len(self.delays), self.num_columns)
            self.tokens_NKT = torch.full(shape, self.generator.pad_token, device=device)
            self.last_RK = torch.zeros(
                len(asked) * self.sampling.samples, len(self.delays), dtype=torch.long, device=device
            )
            self.valid_RL = torch.ones(len(self.last_RK), length, dtype=torch.bool, device=device)
            self.place_R1 = torch.zeros(len(self.last_RK), 1, dtype=torch.long, device=device)
            self.cache = _static(state.cache, self.generator.model.config, length)
            self.condition = {name: tensor.clone() for name, tensor in state.tensors.items()}
        _copy_cache(state.cache, self.cache, begun)
        self.uniform_NKT.copy_(uniform_NKT)
        for name, tensor in state.tensors.items():
            self.condition[name].copy_(tensor)
        self.column.zero_()
        self.position.fill_(begun)
        if not self.is_sound:
            self.valid_RL[:, :begun] = state.tensors["mask"].bool()
            self.place_R1.copy_(state.tensors["mask"].sum(-1, keepdim=True))
        self._draw(first.states_NTD)

    def _capture(self) -> None:
        # Kernels choose their workspace the first time they run, which a capture does not allow.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self.column.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph

    # One position

    def _step(self) -> None:
        allowed_R11L = (self.valid_RL & (self.index_L <= self.position))[:, None, None]
        states_R1D = self.network(self.last_RK, allowed_R11L, self.place_R1)
        self.position += 1
        self.place_R1 += 1
        self._draw(states_R1D)

    def _states(self, last_RK: Tensor, allowed_R11L: Tensor, place_R1: Tensor) -> Tensor:
        generator = self.generator
        settings = {generator.cache_argument: self.cache, "use_cache": True, "attention_mask": allowed_R11L}
        if self.is_sound:
            if self.condition:
                settings["encoder_hidden_states"] = self.condition["condition"]
                settings["encoder_attention_mask"] = self.condition["mask"][:, None, None].bool()
            return generator.model.model(input_ids=last_RK.reshape(-1, 1), **settings).last_hidden_state
        return generator.model.base_model(input_ids=last_RK, position_ids=place_R1, **settings).last_hidden_state

    def _draw(self, states_R1D: Tensor) -> None:
        """Draw the tokens of a position, write them down, and make them the next input."""
        model = self.generator.model
        head = Head.of(model.lm_heads) if self.is_sound else Head.of([model.get_output_embeddings()])
        if self.guidance is not None:
            prompt, negative = states_R1D.float().chunk(2)
            scale_T1 = torch.full((1, 1), self.guidance.scale, device=prompt.device)
            states_R1D = guided_states(prompt, negative, scale_T1).to(states_R1D.dtype)
        probs_NKV = self.sampling.probs(head.all_logits(states_R1D)[:, :, 0])
        uniform_NK = self.uniform_NKT.index_select(2, self.column)[..., 0]
        drawn_NK = draw_tokens(probs_NKV, uniform_NK)
        frame_K = self.column - self.delays
        exists_K = (frame_K >= 0) & (frame_K < self.sampling.max_new_tokens)
        tokens_NK = drawn_NK.masked_fill(~exists_K, self.generator.pad_token)
        self.tokens_NKT.index_copy_(2, self.column, tokens_NK[..., None])
        self.last_RK.copy_(tokens_NK if self.guidance is None else tokens_NK.repeat(2, 1))
        self.column += 1


def _own(cache: Any) -> Any:
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def _static(grown: Any, config: Any, length: int) -> Any:
    """A static cache like one that grows. The keys and values of a text are computed once: they stand where they are."""
    static = StaticCache(config=config, max_cache_len=length)
    for layer, own in zip(static.layers, _own(grown).layers, strict=True):
        layer.lazy_initialization(own.keys, own.values)
    return EncoderDecoderCache(static, grown.cross_attention_cache) if _own(grown) is not grown else static


def _copy_cache(grown: Any, static: Any, begun: int) -> None:
    """The keys and values of the prompts into the places that a graph knows."""
    for layer, own in zip(_own(static).layers, _own(grown).layers, strict=True):
        layer.keys.zero_()
        layer.values.zero_()
        layer.keys[:, :, :begun] = own.keys
        layer.values[:, :, :begun] = own.values
        layer.cumulative_length.fill_(begun)
    if _own(static) is not static:
        for layer, own in zip(static.cross_attention_cache.layers, grown.cross_attention_cache.layers, strict=True):
            if layer is not own:
                layer.keys.copy_(own.keys)
                layer.values.copy_(own.values)


def _without_its_question(table: Any) -> None:
    """MusicGen's table of positions, without looking whether it is long enough: the answer would wait for the device."""

    def forward(input_ids: Tensor, cache_length: Any = 0) -> Tensor:
        position_T = torch.arange(input_ids.shape[-1], device=input_ids.device) + cache_length
        return table.weights.index_select(0, position_T.view(-1))

    table.forward = forward
