"""BetaCalibration: choose beta by the ratio of gradient norms instead of by trial."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from cfg_distill.errors import (
    ConfigError,
    Context,
    Problem,
    nearest,
    problems_of_not_negative,
    problems_of_positive,
    problems_of_shares,
)
from cfg_distill.rewards.running import share_of_newest


class BetaCalibration(Callback):
    r"""Set the weight of one loss so that its gradient is ``ratio`` times as long as another loss's.

    .. math:: w = \text{ratio} \cdot \frac{w_\text{ref} \, \lVert \nabla L_\text{ref} \rVert}{\lVert \nabla L \rVert}

    A beta from a paper holds for its reduction, its embedding and its length only. The ratio carries over. The norms of
    the unweighted terms are measured by the module, which scores and differentiates the batch once more per term, during
    ``num_steps`` optimiser steps; each is smoothed over steps. The weight is set after every measured batch, logged as
    ``calibration/weight``, and stays afterwards. It is a buffer of the loss, so a checkpoint holds it. A run that is resumed
    with another ``ratio`` multiplies it accordingly; with another loss or reference it measures anew.

    The norms are those of one batch of all processes, however it is cut into micro-batches. Noise makes the norm of the
    policy gradient the larger, the smaller the batch; batches that ``accumulate_grad_batches`` adds up are measured one
    by one.

    Args:
        loss: the name, in ``model.losses``, of the term to weigh.
        reference: the name of the term to compare with.
        ratio: the wanted ratio of gradient norms, weights included.
        start_step: optimiser steps before the first measurement: let the reference settle.
        num_steps: optimiser steps to measure; 0 for all.
        momentum: of the smoothing, in [0, 1): the share of the past in each norm.

    Attributes:
        recipe_path: where the arguments stand in a recipe, for messages.
    """

    def __init__(
        self,
        loss: str = "diversity",
        reference: str = "kl",
        ratio: float = 0.5,
        start_step: int = 0,
        num_steps: int = 20,
        momentum: float = 0.9,
    ) -> None:
        self.loss = loss
        self.reference = reference
        self.ratio = ratio
        self.start_step = start_step
        self.num_steps = num_steps
        self.momentum = momentum
        self.recipe_path = type(self).__name__
        self._norms: dict[str, float] = {}
        self._measured = 0
        self._begin: int | None = None
        self._measuring = False
        self._ratio_then = ratio

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        found = []
        if self.loss == self.reference:
            found.append(Problem("reference", f"expected another loss than `@.loss`, but both are {self.loss}."))
        found += problems_of_positive(ratio=self.ratio)
        found += problems_of_not_negative(start_step=self.start_step, num_steps=self.num_steps)
        return found + problems_of_shares(momentum=self.momentum)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        losses: Any = pl_module.losses
        found = self.problems()
        for key, name in (("loss", self.loss), ("reference", self.reference)):
            if name not in losses:
                known = f"a name of `@/model.losses` {list(losses)}"
                found.append(Problem(key, f"expected {known}, but got `{name}`.{nearest(name, losses)}"))
        if found:
            raise ConfigError([problem.under(self.recipe_path) for problem in found])

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self._norms and self._ratio_then != self.ratio:
            pl_module.losses[self.loss].weight.mul_(self.ratio / self._ratio_then)
            said = f"the weight of `{self.loss}` is multiplied by {self.ratio / self._ratio_then:.4g}"
            rank_zero_info(
                f"{type(self).__name__}: the ratio is {self.ratio}, where it was {self._ratio_then}: {said}."
            )
        self._ratio_then = self.ratio

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._begin is None:  # no checkpoint has a state of it: a resumed run may calibrate for the first time
            self._begin = trainer.global_step
        past = trainer.global_step - self._begin - self.start_step
        self._measuring = past >= 0 and (not self.num_steps or past < self.num_steps)
        pl_module.measure_gradients = self._measuring

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._measuring:
            self._measure(pl_module)
            pl_module.measure_gradients = False
        pl_module.log("calibration/weight", pl_module.losses[self.loss].weight)

    def _measure(self, module: Any) -> None:
        losses = module.losses
        both = torch.stack([module.gradient_norms[name].detach().float() for name in (self.loss, self.reference)])
        # Rewards without any spread give no gradient, and a step that overflowed gives an infinite one.
        if not (torch.isfinite(both).all() and (both > 0).all()):
            return
        share = share_of_newest(self.momentum, self._measured)
        self._measured += 1
        for name, norm in zip((self.loss, self.reference), both.tolist(), strict=True):
            self._norms[name] = (1 - share) * self._norms.get(name, 0.0) + share * norm
        reference = losses[self.reference].weight * self._norms[self.reference]
        losses[self.loss].weight.copy_(self.ratio * reference / self._norms[self.loss])

    def state_dict(self) -> dict[str, Any]:
        state = {"norms": dict(self._norms), "measured": self._measured, "begin": self._begin}
        return state | {"terms": [self.loss, self.reference], "ratio": self._ratio_then}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        terms = [self.loss, self.reference]
        if state_dict.get("terms", terms) != terms:
            return
        self._norms, self._measured = dict(state_dict["norms"]), state_dict["measured"]
        self._begin = state_dict.get("begin", 0)
        self._ratio_then = state_dict.get("ratio", self.ratio)
