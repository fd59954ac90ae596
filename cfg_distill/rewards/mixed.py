"""Several rewards as one. Shapes: B prompts, G samples per prompt, R rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from cfg_distill.errors import ConfigError, Context, Problem, blamed, nearest, problems_of, problems_of_not_negative
from cfg_distill.rewards.base import GroupReward, Reward, group_of
from cfg_distill.rewards.checked import outcome_of, values_of
from cfg_distill.rewards.pairwise import PairwiseReward, mean_among_others, mean_with_others, symmetric_pairs
from cfg_distill.rewards.running import RunningMean, all_reduced
from cfg_distill.rewards.sample import SampleReward, leave_one_out
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


class Mixed(Reward):
    r"""Several rewards, each normalised, then added or multiplied.

    ``additive`` maximises :math:`\sum_k w_k D_k / s_k`. Advantages add, each with the baseline of its own reward; s_k
    is the root mean square of the advantages of reward k, so that equal weights pull equally hard. So a beta that was right for
    a reward alone is right times s_k here, mostly a smaller number; ``weight: auto`` of the loss finds it.

    ``multiplicative`` maximises :math:`E \prod_k (R_k / s_k)^{w_k}`: one sample must be good under all rewards at once.
    Rewards of one sample multiply to q(y). A pairwise reward makes the objective :math:`E\, q(y)\, r(y, y')`, which is a mean
    over pairs of the kernel :math:`\tfrac12 (q(y) + q(y'))\, r(y, y')`, and takes the pairwise baseline of that kernel. s_k is
    the mean of reward k. A reward below 0 counts as 0. Needs G >= 3 with a pairwise reward, and rewards that are per sample
    or pairwise.

    Each scale s_k is the mean over the first ``calibration`` batches (over all ranks) and then FIXED, and saved with
    the run: the objective stays one objective. A scale that went on following the rewards would pull ever harder as
    they level out, and beta would lose its meaning. Dividing by the standard deviation of each group does that at every
    step.

    Args:
        rewards: a name for each reward.
        weights: the weight of each reward by its name (the exponent, when multiplicative); 1 where not given.
        mode: ``additive`` or ``multiplicative``.
        calibration: batches that set the scales; 0 leaves the rewards in their own units, so that beta means what it
            means for one of them alone.

    Raises:
        ConfigError: a reward's name holds a full stop, which no module name may.
    """

    def __init__(
        self,
        rewards: dict[str, Reward],
        weights: dict[str, float] = {},  # noqa: B006 - never changed; shown as the default by --help
        mode: Literal["additive", "multiplicative"] = "additive",
        calibration: int = 100,
    ) -> None:
        super().__init__()
        if dotted := [name for name in rewards if "." in name]:
            raise ConfigError(
                f"Reward `Mixed`: expected names of rewards without a full stop, but got {dotted}. Rename them."
            )
        self.rewards = nn.ModuleDict(rewards)
        self.weights = {name: float(weights.get(name, 1.0)) for name in rewards}
        self.unknown = [name for name in weights if name not in rewards]
        self.mode = mode
        self.calibration = calibration
        # The mean square of the advantages when additive, the mean reward when multiplicative.
        self.past = RunningMean(momentum=1.0, shape=(len(rewards),))

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = []
        if not self.rewards:
            found.append(Problem("rewards", "expected at least one reward, but got none."))
        for name in self.unknown:
            known = ", ".join(self.weights)
            found.append(
                Problem(
                    "weights", f"expected names of rewards ({known}), but got `{name}`.{nearest(name, self.weights)}"
                )
            )
        for name, weight in self.weights.items():
            if not math.isfinite(weight) or (self.mode == "multiplicative" and weight < 0):
                wanted = (
                    "a number of at least 0 when multiplicative" if self.mode == "multiplicative" else "a finite number"
                )
                found.append(Problem(f"weights.{name}", f"expected {wanted}, but got {weight}."))
        if self.mode not in ("additive", "multiplicative"):
            found.append(Problem("mode", f"expected `additive` or `multiplicative`, but got `{self.mode}`."))
        found += problems_of_not_negative(calibration=self.calibration)
        for name, reward in self.parts.items():
            of_product = (
                self._problems_of_factor(name, reward, group_of(context)) if self.mode == "multiplicative" else []
            )
            # The product has said what is wrong with 2 samples: the part's own advice, a running mean, would not help.
            ask = context if not any(problem.key == "mode" for problem in of_product) else Context()
            found += of_product + problems_of(reward, ask, under=f"rewards.{name}.init_args")
        return found

    def _problems_of_factor(self, name: str, reward: Reward, group: int | None) -> list[Problem]:
        """Why a reward cannot be a factor of a product."""
        found = []
        if not isinstance(reward, SampleReward | PairwiseReward):
            found.append(
                Problem(
                    f"rewards.{name}",
                    f"expected a SampleReward or a PairwiseReward when multiplicative, but got {type(reward).__name__}: the"
                    " gradient of the product needs to know its parts. Use `mode: additive`.",
                )
            )
        elif not reward.is_factor:
            name_of = type(reward).__name__
            text = f"expected values above 0 when multiplicative, but {name_of} has values below, which count as 0."
            found.append(Problem(f"rewards.{name}", f"{text} Use `mode: additive`."))
        if isinstance(reward, PairwiseReward) and group == 2:
            found.append(
                Problem(
                    "mode",
                    "expected at least 3 samples per prompt for `multiplicative` with a pairwise reward, but got 2. Set"
                    " `@/model.sampling.samples` to 3 or more, or `mode: additive`.",
                )
            )
        return found

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        return [
            problem.under(f"rewards.{name}.init_args")
            for name, reward in self.parts.items()
            for problem in reward.problems_of_prompts(prompts)
        ]

    def load(self) -> Self:
        for reward in self.parts.values():
            reward.load()
        return self

    @property
    def needs_fit(self) -> str:
        return next((said for part in self.parts.values() if (said := part.needs_fit)), "")

    def attach(self, start: StartModel) -> None:
        for reward in self.parts.values():
            reward.attach(start)

    @property
    def parts(self) -> dict[str, Reward]:
        """The rewards by name."""
        return cast(dict[str, Reward], dict(self.rewards.items()))

    @torch.no_grad()
    def forward(self, samples: Samples) -> GroupReward:
        return self._added(samples) if self.mode == "additive" else self._multiplied(samples)

    def _added(self, samples: Samples) -> GroupReward:
        parts = {}
        for name, reward in self.parts.items():
            with blamed(reward, f"rewards.{name}"):
                parts[name] = outcome_of(reward, samples)
        advantage_RBG = torch.stack([part.advantage_BG.to(self.past.value) for part in parts.values()])
        reward_RBG = torch.stack([part.reward_BG.to(self.past.value) for part in parts.values()])
        scale_R = self._scales(advantage_RBG.square()).sqrt()
        factor_R = advantage_RBG.new_tensor(list(self.weights.values())) / scale_R
        # Autocast would make these products half precision.
        with torch.autocast(factor_R.device.type, enabled=False):
            return GroupReward(torch.tensordot(factor_R, reward_RBG, 1), torch.tensordot(factor_R, advantage_RBG, 1))

    def _multiplied(self, samples: Samples) -> GroupReward:
        # Factors of one sample [B, G, 1] and of pairs [B, G, G] stay apart until all are known.
        own, pairs = {}, {}
        for name, reward in self.parts.items():
            with blamed(reward, f"rewards.{name}"):
                if isinstance(reward, SampleReward):
                    own[name] = values_of(reward, reward.score, samples, "BG", by_sample=True)
                elif isinstance(reward, PairwiseReward):
                    pairs[name] = symmetric_pairs(reward, samples)
        own = {name: value.to(self.past.value).clamp(min=0) for name, value in own.items()}
        pairs = {name: value.to(self.past.value).clamp(min=0) for name, value in pairs.items()}
        seen = [own[name] if name in own else mean_with_others(pairs[name]) for name in self.rewards]
        scale = dict(zip(self.rewards, self._scales(torch.stack(seen)), strict=True))
        quality_BG = torch.ones_like(seen[0])
        for name, value_BG in own.items():
            quality_BG = quality_BG * (value_BG / scale[name]) ** self.weights[name]
        if not pairs:
            return GroupReward(quality_BG, quality_BG - leave_one_out(quality_BG))
        kernel_BGG = (quality_BG.unsqueeze(-1) + quality_BG.unsqueeze(-2)) / 2
        for name, value_BGG in pairs.items():
            kernel_BGG = kernel_BGG * (value_BGG / scale[name]) ** self.weights[name]
        reward_BG = mean_with_others(kernel_BGG)
        return GroupReward(reward_BG, 2 * (reward_BG - mean_among_others(kernel_BGG)))

    def degenerate(self, samples: Samples) -> Tensor:
        return torch.stack([reward.degenerate(samples).cpu() for reward in self.parts.values()]).any(0)

    def _scales(self, seen_RBG: Tensor) -> Tensor:
        """The scales for this batch, ``[R]``: the mean of the batches before it, which then takes this one in."""
        seen = int(self.past.updates.min())  # all rewards have values in every batch
        if not self.calibration or not (seen or self.training):  # outside of a fit a batch is no scale of itself
            return torch.ones_like(self.past.value)
        if not seen or (self.training and seen < self.calibration):
            count = torch.full((1,), float(seen_RBG[0].numel()), device=seen_RBG.device)
            *total, number = all_reduced(torch.cat([seen_RBG.flatten(1).sum(1), count])).unbind()
            mean_R = torch.stack(total) / number
            # Only the very first batch, which has no past, is scaled by itself.
            scale_R = self.past.value.clone() if seen else mean_R
            if self.training:
                self.past.update(torch.stack(total), number)
        else:
            scale_R = self.past.value
        # A reward that never moved has nothing to be scaled by, and nothing to add.
        return torch.where(scale_R > 0, scale_R, 1.0)
