"""Rewards of a whole group, or of a whole batch: any statistic, with the one baseline that is right for all of them.

Shapes: B prompts, G samples per prompt.

A statistic F of a group has no values per sample or per pair. Its gradient is still a policy gradient, for any F:

    grad E[F] = E[ (1/G) sum_i a_i * grad log student(y_i) ],      a_i = G (F(all) - F(without i))

F(without i) knows nothing of y_i, so it is a baseline: it changes the variance and not the mean. Both other classes are special
cases. F = mean of scores gives a_i = r_i - leave-one-out mean; F = mean over pairs gives a_i = 2 (r_i - b_i).

The baseline works best where F has the same size for G and for G - 1 samples. So prefer a mean or a share to a sum or a count.

A statistic of the batch mixes prompts. There each of the N = B G samples is left out alone, and N is in the place of G.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.rewards.base import GroupReward, Reward, group_of
from cfg_distill.rewards.checked import refuse_other, values_of
from cfg_distill.sampling.samples import Samples


class _Statistic(Reward):
    """What statistics share.

    Attributes:
        smallest: the fewest samples of a prompt for which a value is defined. A group needs one more, since each sample is left
            out once.
    """

    smallest = 1

    @abstractmethod
    def features(self, samples: Samples) -> Tensor:
        """What a value reads of each sample, ``[B, G, ...]``; asked once per batch, so embed here."""

    def problems(self, context: Context = Context()) -> list[Problem]:
        group, wanted = group_of(context), self.smallest + 1
        if group is None or group >= wanted:
            return []
        text = f"expected at least {wanted} samples per prompt (each sample is left out once), but got {group}."
        return [Problem("/model.sampling.samples", f"{text} Set it to {max(wanted, 4)}, say.")]

    def _features(self, samples: Samples) -> Tensor:
        """The features, of which the shape is known."""
        features, number, group = self.features(samples), len(samples.prompts), samples.group
        if not isinstance(features, Tensor) or features.shape[:2] != (number, group):
            found = list(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
            text = f"expected `features` of {type(self).__name__} to be [B, G, ...] = [{number}, {group}, ...], but got"
            raise ConfigError(Problem("", f"{text} {found}. Keep the samples of a prompt together."))
        return features


class GroupStatistic(_Statistic):
    """A reward that is one number per group: override :meth:`features` and :meth:`value`, and the gradient is unbiased.

    The reward of each sample is the number of its group. What a value compares the samples with must be frozen and drawn
    independently of them, or older than the batch, or a sibling. So F of a prompt must not look at samples of other prompts:
    all groups lose a sample at once, and the gradient would be wrong. :class:`BatchStatistic` is for such an F.
    """

    @abstractmethod
    def value(self, features: Tensor) -> Tensor:
        """F of each group, ``[B]`` float32, from the features of its G samples, or of all but one: ``[B, G - 1, ...]``."""

    @torch.no_grad()
    def forward(self, samples: Samples) -> GroupReward:
        value_BS = values_of(self, self._values, samples, "BS", by_sample=False)
        all_B1, without_BG = value_BS[:, :1], value_BS[:, 1:]
        return GroupReward(all_B1.expand_as(without_BG), samples.group * (all_B1 - without_BG))

    def _values(self, samples: Samples) -> Tensor:
        """F of each group, and F without each of its samples: ``[B, 1 + G]``."""
        features, number = self._features(samples), len(samples.prompts)
        everyone = list(range(samples.group))
        values = [
            self.value(features[:, kept]) for kept in (everyone, *(everyone[:i] + everyone[i + 1 :] for i in everyone))
        ]
        for value_B in values:
            refuse_other(f"`value` of {type(self).__name__}", value_B, {"B": number}, "B")
        return torch.stack(values, dim=-1)


class BatchStatistic(_Statistic):
    r"""A reward that is one number per batch, across prompts: override :meth:`features` and :meth:`value`.

    .. math:: \nabla E[F] = E\Big[\frac{1}{N} \sum_{b, i} a_{bi} \nabla \log \text{student}(y_{bi})\Big], \qquad
        a_{bi} = N (F(\text{all}) - F(\text{without } y_{bi}))

    For prototypes of the student's own samples, say, which are contrasted across prompts. A mean over prompts of a
    :class:`GroupStatistic` has the same advantages either way. It takes N + 1 values per batch.

    The batch is that of one process. So F changes with ``data.batch_size`` and with the number of devices. Where that matters,
    compare with a frozen reference (:class:`~cfg_distill.rewards.Compared`).
    """

    @abstractmethod
    def value(self, features: Tensor, kept: Tensor) -> Tensor:
        """F of the batch, a float32 scalar, from the features of all samples and which of them are there, ``[B, G]`` bool."""

    @torch.no_grad()
    def forward(self, samples: Samples) -> GroupReward:
        value_BS = values_of(self, self._values, samples, "BS", by_sample=False)
        all_B1, without_BG = value_BS[:, :1], value_BS[:, 1:]
        return GroupReward(all_B1.expand_as(without_BG), without_BG.numel() * (all_B1 - without_BG))

    def _values(self, samples: Samples) -> Tensor:
        """F of the batch, in each row, and F without each of its samples: ``[B, 1 + G]``."""
        features = self._features(samples)
        number, group = features.shape[:2]
        kept_BG = torch.ones(number, group, dtype=torch.bool, device=features.device)
        values = [self.value(features, kept_BG)]
        for b in range(number):
            for i in range(group):
                kept_BG[b, i] = False
                values.append(self.value(features, kept_BG.clone()))
                kept_BG[b, i] = True
        for value in values:
            refuse_other(f"`value` of {type(self).__name__}", value, {}, "")
        return torch.cat([values[0].expand(number, 1), torch.stack(values[1:]).view(number, group)], dim=1)
