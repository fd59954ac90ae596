"""CollapseGuard: watch the samples of training for collapse; warn, or stop the run."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from cfg_distill.errors import ConfigError, Context, Problem, nearest, problems_of_counts
from cfg_distill.rewards.running import all_reduced

SHOWN = {
    "entropy": "the entropy of the samples is {:.4g} nats per token",
    "distance": "the mean reward of the samples is {:.4g}",
    "degenerate": "the share of degenerate samples is {:.4g}",
}


def lowest_of(first: float, share: float) -> float:
    """The bound of a value that began at ``first``: this share of it. A negative one may fall as far below its first value.

    Example:
        >>> lowest_of(1.0, 0.25), lowest_of(-1.0, 0.25)
        (0.25, -1.75)
    """
    return first - (1 - share) * abs(first)


class CollapseGuard(Callback):
    r"""Watch the samples of training for collapse: the student writes the same thing again and again, or nothing at all.

    It changes nothing in the model, and looks at numbers that each training step has anyway:

    - entropy: minus the mean log-probability of the drawn tokens (those of an opening were not drawn), under the distribution
      that drew them. It is an unbiased estimate of that distribution's entropy per token.
    - distance: the mean reward of a loss. For :class:`~cfg_distill.rewards.PairwiseDiversity` it is the mean distance between
      samples of a prompt.
    - degenerate: the share of degenerate samples, after any redraws.

    Every ``window`` batches the means over these batches of all processes are compared with the bounds. It warns once when a
    collapse begins, and again only after it has ended. :class:`DiversityLogging` watches the samples of validation instead.

    Example::

        - class_path: cfg_distill.callbacks.CollapseGuard
          init_args: {action: stop}

    Args:
        entropy_below: the lowest entropy; 0 for no bound.
        distance_below: the lowest mean reward; 0 for no bound.
        degenerate_above: the highest share of degenerate samples; 1 for no bound.
        relative: whether ``entropy_below`` and ``distance_below`` are shares of the first window's values, else values. A
            reward below 0 may fall by one minus the share of its size.
        loss: the loss, in ``model.losses``, whose reward is the distance; empty for the first one that has a reward.
        window: batches to average over.
        action: ``warn``, or ``stop``: the run ends with exit code 2 and the numbers.
    """

    def __init__(
        self,
        entropy_below: float = 0.25,
        distance_below: float = 0.5,
        degenerate_above: float = 0.5,
        relative: bool = True,
        loss: str = "",
        window: int = 20,
        action: Literal["warn", "stop"] = "warn",
    ) -> None:
        self.entropy_below = entropy_below
        self.distance_below = distance_below
        self.degenerate_above = degenerate_above
        self.relative = relative
        self.loss = loss
        self.window = window
        self.action = action
        self.recipe_path = type(self).__name__
        self._sums = [0.0] * 6
        self._batches = 0
        self._first: dict[str, float] = {}
        self._collapsed: list[str] = []

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        found = problems_of_counts(window=self.window)
        highest = 1.0 if self.relative else math.inf
        for key, bound in (("entropy_below", self.entropy_below), ("distance_below", self.distance_below)):
            if not 0 <= bound <= highest:
                what = "a share in [0, 1] of the first value" if self.relative else "a number of at least 0"
                found.append(Problem(key, f"expected {what}, but got {bound}."))
        if not 0 <= self.degenerate_above <= 1:
            found.append(Problem("degenerate_above", f"expected a share in [0, 1], but got {self.degenerate_above}."))
        if self.action not in ("warn", "stop"):
            found.append(Problem("action", f"expected `warn` or `stop`, but got `{self.action}`."))
        return found

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        losses: Any = pl_module.losses
        found = self.problems()
        if self.loss and self.loss not in losses:
            known = f"a name of `@/model.losses` {list(losses)}"
            found.append(Problem("loss", f"expected {known}, but got `{self.loss}`.{nearest(self.loss, losses)}"))
        if found:
            raise ConfigError([problem.under(self.recipe_path) for problem in found])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        drawn, rewards, degenerate_BG = outputs["samples"].rollout, outputs["rewards"], outputs["degenerate"]
        if self.loss and self.loss not in rewards:
            text = f"expected a loss with a reward, one of {list(rewards)}, but `{self.loss}` has none. Name another."
            raise ConfigError(Problem("loss", text).under(self.recipe_path))
        reward_BG = rewards.get(self.loss or next(iter(rewards), ""), torch.zeros(0))
        own_BGKT = drawn.mask_BGKT.clone()
        own_BGKT[..., : drawn.opening] = False  # nobody drew these tokens
        pairs = ((-drawn.log_probs_BGKT, own_BGKT), (reward_BG, None), (degenerate_BG, None))
        own_6 = [number for values, counted in pairs for number in _sum_and_count(values, counted, pl_module.device)]
        # One small message per batch, so that the state is the same on all processes and in every checkpoint.
        every = all_reduced(torch.stack(own_6)).tolist()
        if not all(map(math.isfinite, every)):
            return  # a bad step, which the module skips
        self._sums = [before + new for before, new in zip(self._sums, every, strict=True)]
        self._batches += 1
        if self._batches >= self.window:
            sums, self._sums, self._batches = self._sums, [0.0] * 6, 0
            means = {name: sums[2 * n] / sums[2 * n + 1] for n, name in enumerate(SHOWN) if sums[2 * n + 1]}
            self._judge(trainer.global_step, means)

    def _judge(self, step: int, means: dict[str, float]) -> None:
        self._first = self._first or dict(means)
        reasons = {}
        for name, value in means.items():
            if name == "degenerate":
                is_worse, bound = value > self.degenerate_above, f"above {self.degenerate_above:.4g}"
            else:
                asked = self.entropy_below if name == "entropy" else self.distance_below
                first = self._first.get(name, value)
                lowest = lowest_of(first, asked) if self.relative else asked
                is_worse, bound = asked > 0 and value < lowest, f"below {lowest:.4g}"
                if self.relative:
                    bound += f"; its first value was {first:.4g}"
            if is_worse:
                reasons[name] = f"{SHOWN[name].format(value)}, {bound}"
        begun = [reason for name, reason in reasons.items() if name not in self._collapsed]
        self._collapsed = list(reasons)
        if not begun:
            return
        text = (
            f"Collapse at step {step}, over {self.window} batches: {'; '.join(begun)}. Raise the weight of the diversity loss,"
            " train less, or take an earlier checkpoint."
        )
        if self.action == "stop":
            raise ConfigError(Problem("", text).under(self.recipe_path))
        rank_zero_warn(text)

    # State

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": list(self._sums),
            "batches": self._batches,
            "first": dict(self._first),
            "collapsed": list(self._collapsed),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums, self._batches = list(state_dict["sums"]), state_dict["batches"]
        self._first, self._collapsed = dict(state_dict["first"]), list(state_dict["collapsed"])


def _sum_and_count(values: Tensor, counted: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """The sum and the number of the values that count, in float32 on a device."""
    values = values.float()
    counted = torch.ones_like(values, dtype=torch.bool) if counted is None else counted
    return values[counted].sum().to(device), counted.sum().float().to(device)
