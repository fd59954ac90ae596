"""Rollouts. Shapes: B prompts, G samples a prompt, N = B * G rows, K codebooks, T positions, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError
from cfg_distill.generators import Generator, Guided
from cfg_distill.generators.base import Stream
from cfg_distill.generators.delay import cells_at
from cfg_distill.guidance import Guidance
from cfg_distill.sampling.distribution import Sampling, draw_tokens


@dataclass
class Rollout:
    """Groups of samples, in the layout of :mod:`cfg_distill.generators.delay`.

    Attributes:
        tokens_BGKT: generated tokens; the pad token in cells that do not exist.
        mask_BGKT: True on cells that exist: the frames of a codebook up to and including the end token.
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

    @property
    def length_N(self) -> Tensor:
        """Frames of each sample, the end token included."""
        return self.mask_NKT[:, 0].sum(-1)


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
    if problems := problems_of_lengths(generator, prompts, sampling):
        raise ConfigError(problems)
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
    num_frames = sampling.max_new_tokens
    delays_K = torch.tensor(stream.delays, device=device)
    # The frame of each row's end token; num_frames while it has none.
    end_N = torch.full((len(prompts) * sampling.samples,), num_frames, device=device)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    state, next_one = stream.prefill(prompts, sampling.samples)
    for position in range(num_frames + max(stream.delays)):
        exists_NK = cells_at(position, delays_K, num_frames, end_N)
        log_probs_NKV = sampling.log_probs(next_one.whole()[:, :, 0])
        drawn_NK = draw_tokens(log_probs_NKV, random)
        tokens_NK = torch.where(exists_NK, drawn_NK, stream.pad_token)
        picked_NK = log_probs_NKV.gather(-1, drawn_NK.unsqueeze(-1)).squeeze(-1)
        columns.append((tokens_NK, exists_NK, torch.where(exists_NK, picked_NK, 0.0)))
        if stream.end_token is not None:
            end_N = torch.where(exists_NK[:, 0] & (tokens_NK[:, 0] == stream.end_token), position, end_N)
            # Delayed codebooks finish the frames before the end token.
            if (end_N + max(0, max(stream.delays) - 1)).amax() <= position:
                break
        if position + 1 < num_frames + max(stream.delays):
            state, next_one = stream.step(state, tokens_NK)
    tokens, mask, log_probs = (torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True))
    return tokens, mask, log_probs


def problems_of_lengths(generator: Generator, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """Whether a prompt is too long for the loaded model, samples included: at most one sentence."""
    limit = generator.max_positions
    taken = generator.prompt_positions(prompts) + max(generator.delays)
    if limit is None or taken + sampling.max_new_tokens <= limit:
        return []
    longest = max(prompts, key=lambda prompt: len(prompt or ""))
    if taken >= limit:
        return [
            f"Prompt `{_shortened(longest)}`: expected at most {limit - sampling.max_new_tokens} positions for it (the model"
            f" has {limit}, and `max_new_tokens` is {sampling.max_new_tokens}), but it takes {taken}. Shorten it."
        ]
    return [
        f"Key `max_new_tokens`: the longest prompt (`{_shortened(longest)}`) takes {taken} of the model's {limit} positions,"
        f" so expected at most {limit - taken}, but got {sampling.max_new_tokens}. Lower it, or shorten the prompt."
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
