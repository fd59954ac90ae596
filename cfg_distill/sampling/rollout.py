"""Rollouts. Shapes: B prompts, G samples per prompt, N = B * G rows, K codebooks, T positions, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cfg_distill.errors import ConfigError, Problem, shortened
from cfg_distill.generators import Generator, Guidance, Predictions, Predictor, Prompt, PromptLike
from cfg_distill.generators.delay import cells_at
from cfg_distill.generators.guided import problems_of_drop, under
from cfg_distill.generators.linear import packed
from cfg_distill.generators.probes import in_eval_mode
from cfg_distill.sampling.conditioning import Conditioner
from cfg_distill.sampling.distribution import Sampling, draw_tokens
from cfg_distill.sampling.seeds import Seeds

MIN_PACKED = 16
"""Positions from which a rollout pays for laying out the weights."""


@dataclass
class Rollout:
    """Groups of samples, in the layout of :mod:`cfg_distill.generators.delay`.

    Attributes:
        tokens_BGKT: generated tokens; the pad token in cells that do not exist.
        mask_BGKT: True on cells that exist: the frames of a codebook up to and including the end token.
        log_probs_BGKT: log-probability of each token under the distribution that drew it; 0 where masked.
        labels_BG: the label that each sample was drawn under; None without a conditioner.
        opening: how many of the first positions were given and not drawn: nothing is learnt of having chosen their tokens.
        steps_behind: steps that the student has taken since it began to draw them.
    """

    tokens_BGKT: Tensor
    mask_BGKT: Tensor
    log_probs_BGKT: Tensor
    labels_BG: Tensor | None = None
    opening: int = 0
    steps_behind: int = 0

    @property
    def tokens_NKT(self) -> Tensor:
        return self.tokens_BGKT.flatten(0, 1)

    @property
    def mask_NKT(self) -> Tensor:
        return self.mask_BGKT.flatten(0, 1)

    @property
    def log_probs_NKT(self) -> Tensor:
        return self.log_probs_BGKT.flatten(0, 1)

    @property
    def length_N(self) -> Tensor:
        """Frames of each sample, the end token included."""
        return self.mask_NKT[:, 0].sum(-1)

    def padded(self, length: int, pad_token: int) -> Rollout:
        """The same samples, with cells that do not exist up to a number of positions."""
        more = (0, length - self.tokens_BGKT.shape[-1])
        return replace(
            self,
            tokens_BGKT=pad(self.tokens_BGKT, more, value=pad_token),
            mask_BGKT=pad(self.mask_BGKT, more, value=False),
            log_probs_BGKT=pad(self.log_probs_BGKT, more),
        )

    def beginning(self, positions: int) -> Tensor:
        """The tokens of the first positions, ``[B, G, K, t]``; 0 in cells that do not exist."""
        return self.tokens_BGKT.masked_fill(~self.mask_BGKT, 0)[..., :positions]


@dataclass(frozen=True)
class Asked:
    """What one rollout asks for. Under a conditioner each sample is a prompt of its own, with its label.

    Attributes:
        prompts: as the predictor reads them.
        sampling: how many samples of each of them, and from which distribution.
        seeds: keys of the samples.
        shape: B and G, as the caller has them.
        labels_BG: the labels; None without a conditioner.
    """

    prompts: Sequence[PromptLike]
    sampling: Sampling
    seeds: Seeds
    shape: tuple[int, int]
    labels_BG: Tensor | None

    @classmethod
    def of(
        cls,
        predictor: Predictor,
        prompts: Sequence[PromptLike],
        sampling: Sampling,
        guidance: Guidance | None = None,
        seed: int | Seeds = 0,
        conditioner: Conditioner | None = None,
    ) -> Asked:
        """Arguments: see :func:`rollout`.

        Raises:
            ConfigError: see :func:`problems_of_lengths`.
        """
        shape, seeds, labels_BG = (len(prompts), sampling.samples), Seeds.of(seed, len(prompts)), None
        if conditioner is not None:
            labels_BG = conditioner.labels(sampling.samples, seeds)
            prompts, seeds = conditioner.asked(prompts, labels_BG), seeds.apart(sampling.samples)
            sampling = replace(sampling, samples=1)
        found = [each for part in predictor.parts for each in problems_of_lengths(part, prompts, sampling, guidance)]
        if found:
            raise ConfigError(list(dict.fromkeys(found)))
        return cls(prompts, sampling, seeds, shape, labels_BG)

    def grouped(self, tokens_NKT: Tensor, mask_NKT: Tensor, log_probs_NKT: Tensor) -> Rollout:
        """The groups that answer."""
        drawn = (tensor.unflatten(0, self.shape) for tensor in (tokens_NKT, mask_NKT, log_probs_NKT))
        return replace(Rollout(*drawn), labels_BG=self.labels_BG)


_all_done: ContextVar[Callable[[bool], bool]] = ContextVar("all_done", default=bool)


@contextmanager
def in_step(all_done: Callable[[bool], bool]) -> Iterator[None]:
    """Until the context ends, rollouts go on until the samples of every process are finished, or longer.

    Args:
        all_done: whether all processes are done, from whether this one is; every process calls it at every position. One that
            is always False decodes all samples to their full length.
    """
    token = _all_done.set(all_done)
    try:
        yield
    finally:
        _all_done.reset(token)


@torch.no_grad()
def rollout(
    predictor: Predictor,
    prompts: Sequence[PromptLike],
    sampling: Sampling,
    guidance: Guidance | None = None,
    seed: int | Seeds = 0,
    conditioner: Conditioner | None = None,
    opening: Tensor | None = None,
) -> Rollout:
    """Draw G samples of each prompt, on the predictor's device, in eval mode: dropout would change the distribution.

    The same seed, prompts and weights give the same samples; nothing depends on the global random state. The random numbers of
    a sample depend on the seed, the place of its prompt and its number in the group (:class:`~cfg_distill.sampling.Seeds`).
    Afterwards each generator is in the mode that it was in.

    Args:
        predictor: a loaded generator, or any other predictor over loaded generators.
        prompts: B prompts.
        sampling: G, T, temperature, filters.
        guidance: samples under guidance (two rows per sample) when given and active.
        seed: of the random numbers of this rollout; :class:`~cfg_distill.sampling.Seeds` where the prompts are part of a larger
            batch.
        conditioner: gives each sample a label that the predictor reads beside the prompt; None for the prompts alone.
        opening: tokens that the samples begin with (:meth:`Rollout.beginning`); None for none. An opening that holds an end
            token is the whole sample.

    Raises:
        ConfigError: see :func:`problems_of_lengths`; the model predicts NaN.
    """
    asked = Asked.of(predictor, prompts, sampling, guidance, seed, conditioner)
    predictor = under(predictor, guidance)
    # The weights are laid out once per rollout: a few steps do not pay for it.
    pack = sampling.pack_weights and sampling.max_new_tokens >= MIN_PACKED
    with ExitStack() as stack:
        for part in predictor.parts:
            stack.enter_context(in_eval_mode(part))
            if pack:
                stack.enter_context(packed(part.model))
        device = predictor.parts[0].device
        given_TNK = torch.empty(0) if opening is None else opening.flatten(0, 1).to(device).movedim(-1, 0)
        tokens_NKT, mask_NKT, log_probs_NKT = _decode(predictor, asked, device, given_TNK)
    if not log_probs_NKT.isfinite().all():  # once per rollout: a look at every position would wait for the accelerator
        raise ConfigError(
            "The model diverged: its predictions are NaN or infinite. Use an earlier checkpoint of it, or train it again at a"
            " lower learning rate."
        )
    return replace(asked.grouped(tokens_NKT, mask_NKT, log_probs_NKT), opening=len(given_TNK))


def _decode(
    predictor: Predictor, asked: Asked, device: torch.device, given_TNK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    prompts, sampling, seeds = asked.prompts, asked.sampling, asked.seeds
    num_rows, num_frames = len(prompts) * sampling.samples, sampling.max_new_tokens
    shape = (num_rows, len(predictor.delays), num_frames + max(predictor.delays))
    # All numbers at once: the draws of a row do not depend on which other rows have finished.
    uniform_NKT = seeds.uniform_NKT(sampling.samples, *shape[1:]).to(device)
    tokens_NKT = torch.full(shape, predictor.pad_token, device=device)
    mask_NKT = torch.zeros(shape, dtype=torch.bool, device=device)
    log_probs_NKT = torch.zeros(shape, dtype=torch.float32, device=device)
    delays_K = torch.tensor(predictor.delays, device=device)
    # The frame of each row's end token; num_frames while it has none.
    end_N = torch.full((num_rows,), num_frames, device=device)
    rows_M = torch.arange(num_rows, device=device)  # the M rows that are still decoded
    ends_E = torch.tensor(predictor.end_tokens, device=device)
    all_done = _all_done.get()
    state, next_one = predictor.prefill(prompts, sampling.samples)
    for position in range(shape[-1]):
        exists_MK = cells_at(position, delays_K, num_frames, end_N[rows_M], predictor.end_codebooks)
        uniform_MK = uniform_NKT[rows_M, :, position]
        given_MK = given_TNK[position][rows_M] if position < len(given_TNK) else None
        state, tokens_MK, picked_MK = _drawn(predictor, state, next_one, sampling, uniform_MK, exists_MK, given_MK)
        if predictor.end_tokens:
            last_M = torch.isin(tokens_MK[:, : predictor.end_codebooks], ends_E).all(-1)
            end_N[rows_M] = torch.where(exists_MK[:, 0] & last_M, position, end_N[rows_M])
            # Codebooks without delay that do not draw the end have no cell in the last frame.
            exists_MK = cells_at(position, delays_K, num_frames, end_N[rows_M], predictor.end_codebooks)
            tokens_MK = torch.where(exists_MK, tokens_MK, predictor.pad_token)
        tokens_NKT[rows_M, :, position] = tokens_MK
        mask_NKT[rows_M, :, position] = exists_MK
        log_probs_NKT[rows_M, :, position] = torch.where(exists_MK, picked_MK, 0.0)
        if predictor.end_tokens:
            # Delayed codebooks finish the frames before the end token.
            (running_R,) = (end_N[rows_M] + max(0, max(predictor.delays) - 1) > position).nonzero(as_tuple=True)
            if all_done(not len(running_R)):
                break
            # Selecting rows copies the cache, which does not pay for every row that ends.
            if sampling.drop_finished and 0 < len(running_R) <= 0.75 * len(rows_M):
                state, rows_M, tokens_MK = predictor.keep(state, running_R), rows_M[running_R], tokens_MK[running_R]
        if position + 1 < shape[-1]:
            state, next_one = predictor.step(state, tokens_MK)
    return tokens_NKT[..., : position + 1], mask_NKT[..., : position + 1], log_probs_NKT[..., : position + 1]


def _drawn(
    predictor: Predictor,
    state: Any,
    predicted: Predictions,
    sampling: Sampling,
    uniform_MK: Tensor,
    exists_MK: Tensor,
    given_MK: Tensor | None,
) -> tuple[Any, Tensor, Tensor]:
    """The tokens of a position, pad tokens where there is no cell, and their log-probabilities: ``[M, K]`` each.

    Codebooks that are predicted together are drawn together; a depth decoder then predicts the next ones from their tokens.
    Given tokens are taken in the place of drawn ones, with log-probability 0.
    """
    tokens_MK = torch.empty_like(exists_MK, dtype=torch.long)
    picked_MK = torch.zeros_like(exists_MK, dtype=torch.float32)
    begin, num_codebooks = 0, exists_MK.shape[1]
    while True:
        probs_MJV = sampling.probs(predicted.whole()[:, :, 0])
        now = slice(begin, begin + probs_MJV.shape[1])
        if given_MK is None:
            drawn_MJ = draw_tokens(probs_MJV, uniform_MK[:, now])
            picked_MK[:, now] = probs_MJV.gather(-1, drawn_MJ.unsqueeze(-1)).squeeze(-1).log()
        else:
            drawn_MJ = given_MK[:, now]
        tokens_MK[:, now] = torch.where(exists_MK[:, now], drawn_MJ, predictor.pad_token)
        begin = now.stop
        if begin == num_codebooks:
            return state, tokens_MK, picked_MK
        state, predicted = predictor.deepen(state, tokens_MK[:, :begin])


def problems_of_lengths(
    generator: Generator, prompts: Sequence[PromptLike], sampling: Sampling, guidance: Guidance | None = None
) -> list[Problem]:
    """Why a model could not write such samples of these prompts: a prompt lacks something, or is too long.

    Under guidance the negative prompts count too. The key ``max_new_tokens`` is the field of ``sampling``.
    """
    found = [*generator.problems_of_prompts(prompts), *sampling.problems_of_length(generator.longest_sample)]
    found += [] if guidance is None else problems_of_drop(generator, guidance)
    if found:
        return ConfigError(found).problems  # a user's generator of version 0.1 returns sentences
    try:
        left = positions_left(generator, prompts, guidance)
    except ConfigError as error:
        return error.problems
    limit = generator.max_positions
    if left is None or limit is None or sampling.max_new_tokens <= left:
        return []
    taken, longest = limit - left, _longest(generator, prompts, guidance)
    if left <= 0:
        text = (
            f"{longest}: expected at most {max(limit - sampling.max_new_tokens, 0)} positions for it (the model"
            f" has {limit}, and `max_new_tokens` is {sampling.max_new_tokens}), but it takes {taken}. Shorten it."
        )
        return [Problem("", text)]
    text = (
        f"{longest}, the longest, takes {taken} of the model's {limit} positions,"
        f" so expected at most {left}, but got {sampling.max_new_tokens}. Lower it, or shorten the prompt."
    )
    return [Problem("max_new_tokens", text)]


def problems_of_reading(generator: Generator, prompts: Sequence[PromptLike]) -> list[Problem]:
    """Why a model cannot read some prompts, however long they may be."""
    if found := generator.problems_of_prompts(prompts):
        return ConfigError(found).problems  # a user's generator of version 0.1 returns sentences
    try:
        positions_left(generator, prompts)
    except ConfigError as error:
        return error.problems
    return []


def positions_left(generator: Generator, prompts: Sequence[PromptLike], guidance: Guidance | None = None) -> int | None:
    """Positions for samples beside the longest of the prompts, negative prompts among them; None without a limit.

    Raises:
        ConfigError: a prompt that the model cannot read.
    """
    if generator.max_positions is None:
        return None
    taken = generator.prompt_positions([*prompts, *_negatives(generator, prompts, guidance)])
    return generator.max_positions - generator.reserved_positions - taken


def _negatives(
    generator: Generator, prompts: Sequence[PromptLike], guidance: Guidance | None
) -> list[PromptLike | None]:
    return generator.negatives(prompts, guidance) if guidance is not None and guidance.active else []


def _longest(generator: Generator, prompts: Sequence[PromptLike], guidance: Guidance | None) -> str:
    """The prompt that takes most positions, in words."""
    kinds: dict[str, Sequence[PromptLike | None]] = {
        "Prompt": prompts,
        "Negative prompt": _negatives(generator, prompts, guidance),
    }
    kind, longest = max(
        ((kind, prompt) for kind, several in kinds.items() for prompt in several),
        key=lambda pair: generator.prompt_positions([pair[1]]),
    )
    prompt = Prompt.of(longest or "")
    system = " with its system message" if "system" in prompt.conditions else ""
    return f"{kind} `{shortened(prompt.text)}`{system}"
