"""Rollouts. Shapes: B prompts, G samples a prompt, N = B * G rows, K codebooks, T positions, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError
from cfg_distill.generators import Generator, Guided
from cfg_distill.generators.base import Stream
from cfg_distill.guidance import Guidance
from cfg_distill.sampling.distribution import Sampling, draw_tokens


@dataclass
class Rollout:
    """Groups of samples.

    Attributes:
        tokens_BGKT: generated tokens; the pad token behind the end token.
        mask_BGKT: True on generated cells up to and including the end token.
        log_probs_BGKT: log-probability of each token under the distribution that drew it; 0 where masked.
    """

    tokens_BGKT: Tensor
    mask_BGKT: Tensor
    log_probs_BGKT: Tensor

    @property
    def tokens_NKT(self) -> Tensor:
        return self.tokens_BGKT.flatten(0, 1)

    @property
    def mask_NKT(self) -> Tensor:
        return self.mask_BGKT.flatten(0, 1)


@torch.no_grad()
def rollout(
    generator: Generator,
    prompts: Sequence[str],
    sampling: Sampling,
    guidance: Guidance | None = None,
    seed: int = 0,
) -> Rollout:
    """Draw G samples of each prompt, on the generator's device, in eval mode: dropout would change the distribution.

    The same seed, prompts and weights give the same samples; nothing depends on the global random state.

    Args:
        generator: the loaded generator.
        prompts: B prompts.
        sampling: G, T, temperature, filters.
        guidance: samples under guidance (two rows a sample) when given and active.
        seed: of the random numbers of this rollout.

    Raises:
        ConfigError: a prompt and ``max_new_tokens`` do not fit the model's positions.
    """
    stream: Stream = Guided(generator, guidance) if guidance is not None and guidance.active else generator
    _check_positions(generator, prompts, sampling)
    was_training = generator.training
    generator.eval()
    try:
        tokens_NKT, mask_NKT, log_probs_NKT = _decode(stream, prompts, sampling, seed, generator.device)
    finally:
        generator.train(was_training)
    shape = (len(prompts), sampling.samples)
    return Rollout(*(tensor.unflatten(0, shape) for tensor in (tokens_NKT, mask_NKT, log_probs_NKT)))


def _decode(
    stream: Stream, prompts: Sequence[str], sampling: Sampling, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator(device).manual_seed(seed)
    alive_N1 = torch.ones(len(prompts) * sampling.samples, 1, dtype=torch.bool, device=device)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    state, logits_NKV = stream.prefill(prompts, sampling.samples)
    while True:
        log_probs_NKV = sampling.log_probs(logits_NKV)
        drawn_NK = draw_tokens(log_probs_NKV, random)
        tokens_NK = torch.where(alive_N1, drawn_NK, stream.pad_token)
        picked_NK = log_probs_NKV.gather(-1, drawn_NK.unsqueeze(-1)).squeeze(-1)
        columns.append((tokens_NK, alive_N1.expand_as(tokens_NK), torch.where(alive_N1, picked_NK, 0.0)))
        if stream.end_token is not None:
            alive_N1 = alive_N1 & (tokens_NK != stream.end_token).all(-1, keepdim=True)
        if len(columns) == sampling.max_new_tokens or not alive_N1.any():
            tokens, mask, log_probs = (torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True))
            return tokens, mask, log_probs
        state, logits_NKV = stream.step(state, tokens_NK)


def _check_positions(generator: Generator, prompts: Sequence[str], sampling: Sampling) -> None:
    limit = generator.max_positions
    if limit is None:
        return
    longest = max(tensor.shape[-1] for tensor in generator.encode(prompts).tensors.values())
    if longest + sampling.max_new_tokens > limit:
        raise ConfigError(
            f"Key `max_new_tokens`: the longest prompt has {longest} tokens and the model {limit} positions, so expected"
            f" at most {limit - longest}, but got {sampling.max_new_tokens}. Lower it, or shorten the prompts."
        )
