"""What a reward returns, checked where it is asked; and which sample it failed on. Shapes: B prompts, G samples per prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cfg_distill.embedders.base import described
from cfg_distill.errors import ConfigError, PartError, Problem
from cfg_distill.rewards.base import GroupReward, Reward
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples


def outcome_of(reward: Reward, samples: Samples) -> GroupReward:
    """Rewards and advantages of B groups, on the device of the samples.

    Raises:
        ConfigError: the reward returned something else than two tensors ``[B, G]`` of float32 without gradient.
    """
    outcome = reward(samples)
    if not isinstance(outcome, GroupReward):
        text = f"expected {type(reward).__name__} to return a GroupReward, but got {described(outcome)}."
        raise ConfigError(Problem("", text))
    shape = {"B": len(samples.prompts), "G": samples.group}
    device = samples.rollout.tokens_BGKT.device
    found = {"reward_BG": outcome.reward_BG, "advantage_BG": outcome.advantage_BG}
    for name, value in found.items():
        refuse_other(f"`{name}` of {type(reward).__name__}", value, shape)
    return GroupReward(**{name: value.to(device) for name, value in found.items()})


def opinion_of(reward: Reward, samples: Samples) -> Tensor:
    """Which samples a reward calls degenerate, ``[B, G]``.

    Raises:
        ConfigError: the reward returned something else than bool ``[B, G]``.
    """
    degenerate_BG, shape = reward.degenerate(samples), (len(samples.prompts), samples.group)
    if not isinstance(degenerate_BG, Tensor) or (degenerate_BG.shape, degenerate_BG.dtype) != (shape, torch.bool):
        expected = f"`degenerate` of {type(reward).__name__} to be [B, G] = {list(shape)}, bool"
        raise ConfigError(Problem("", f"expected {expected}, but got {described(degenerate_BG)}."))
    return degenerate_BG


def values_of(
    reward: Reward, method: Callable[[Samples], Tensor], samples: Samples, letters: str, by_sample: bool
) -> Tensor:
    """The values of a method that looks at each group, or each sample, on its own.

    Args:
        reward: whose method it is.
        method: from samples to ``[B, G]``, ``[B, G, G]`` or ``[B, S]``.
        samples: the groups.
        letters: of that shape; S is 1 + G, a group and each of its samples left out.
        by_sample: whether a sample's value is the same without its siblings. It decides how closely a failure is located.

    Raises:
        ConfigError: the values are no float32 tensor of that shape, or have a gradient.
        PartError: the method raised an exception.
    """
    try:
        values = method(samples)
    except (ConfigError, PartError):
        raise
    except Exception as error:
        raise PartError(type(reward).__name__, outputs=_failing(method, samples, by_sample, error)) from error
    sizes = {"B": len(samples.prompts), "G": samples.group, "S": samples.group + 1}
    refuse_other(f"`{method.__name__}` of {type(reward).__name__}", values, sizes, letters)
    return values


def refuse_other(what: str, value: Any, sizes: dict[str, int], letters: str = "BG") -> None:
    """Refuse what is no float32 tensor of a shape, without gradient.

    Args:
        what: for the message.
        value: what was returned.
        sizes: the number behind each letter.
        letters: the shape.

    Raises:
        ConfigError: it is something else.
    """
    shape = tuple(sizes[letter] for letter in letters)
    if not isinstance(value, Tensor):
        wrong, todo = True, "Return a tensor."
    elif tuple(value.shape) != shape:
        wrong, todo = True, "Keep the samples of a prompt together: `.unflatten(0, (B, G))` of values per sample."
    elif value.dtype != torch.float32:
        wrong, todo = True, "Add `.float()`."
    else:
        wrong, todo = value.requires_grad, "Compute it under `torch.no_grad()`."
    if wrong:
        expected = f"[{', '.join(letters)}] = {list(shape)}, float32, without gradient"
        raise ConfigError(Problem("", f"expected {what} to be {expected}, but got {described(value)}. {todo}"))


def _failing(method: Callable[[Samples], Tensor], samples: Samples, by_sample: bool, error: Exception) -> range:
    """The numbers of the first outputs on which the method fails in the same way, a sample or a group; none if unknown."""
    try:
        for numbers, part in _alone(samples, by_sample):
            try:
                method(part)
            except type(error):
                return numbers
    except Exception:
        return range(0)  # it fails in another way
    return range(0)


def _alone(samples: Samples, by_sample: bool) -> Iterator[tuple[range, Samples]]:
    """Each sample alone, or each group; and the numbers of its outputs."""
    step = 1 if by_sample else samples.group
    for first in range(0, len(samples.outputs), step):
        b, g = divmod(first, samples.group)
        part = (slice(b, b + 1), slice(g, g + step))
        drawn = samples.rollout
        yield (
            range(first, first + step),
            replace(
                samples,
                prompts=[samples.prompts[b]],
                asked=[samples.asked[b]],
                outputs=samples.outputs[first : first + step],
                start=samples.start[first : first + step],
                rollout=Rollout(
                    drawn.tokens_BGKT[part],
                    drawn.mask_BGKT[part],
                    drawn.log_probs_BGKT[part],
                    None if drawn.labels_BG is None else drawn.labels_BG[part],
                    drawn.opening,
                ),
            ),
        )
