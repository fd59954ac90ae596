"""Which numbers make sense: of every key, and of the arguments of classes that are not ours.

A class of ours says in its ``problems`` what it takes. Lightning and torch say it late, in a traceback, or not at all: a
negative clip value trains on, and so does a learning rate of infinity until all is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """The numbers that an argument takes.

    Args:
        low: the lowest.
        words: what to say of them: ``a number above 0``.
        high: the highest.
        without_low: whether the lowest is no such number itself.
        also: further numbers, which mean something of their own.
        alone: whether they are for a number alone: a list of devices holds their places, from 0.
    """

    low: float
    words: str
    high: float = math.inf
    without_low: bool = False
    also: tuple[float, ...] = ()
    alone: bool = False

    def holds(self, number: float) -> bool:
        return number in self.also or (
            self.low <= number <= self.high and not (self.without_low and number == self.low)
        )


_STEPS = Bounds(1, "at least 1")
_STEPS_OR_NO_LIMIT = Bounds(1, "at least 1, or -1 for no limit", also=(-1,))
_FROM_0 = Bounds(0, "a number of at least 0")
_WHOLE_FROM_0 = Bounds(0, "0 or more")
_ABOVE_0 = Bounds(0, "a number above 0", without_low=True)
_SHARE = Bounds(0, "a number in [0, 1)", high=math.nextafter(1, 0))

TRAINER = {
    "accumulate_grad_batches": _STEPS,
    "check_val_every_n_epoch": _STEPS,
    "devices": Bounds(1, "at least 1, or -1 for all", also=(-1,), alone=True),
    "gradient_clip_val": Bounds(0, "a number of at least 0 (0 clips nothing)"),
    "log_every_n_steps": _WHOLE_FROM_0,
    "max_epochs": _STEPS_OR_NO_LIMIT,
    "max_steps": _STEPS_OR_NO_LIMIT,
    "min_epochs": _WHOLE_FROM_0,
    "min_steps": _WHOLE_FROM_0,
    "num_nodes": _STEPS,
    "num_sanity_val_steps": Bounds(0, "0 or more, or -1 for all", also=(-1,)),
    "val_check_interval": Bounds(0, "a number of batches, or a share of an epoch, above 0", without_low=True),
}
"""Of ``trainer``."""
SEED = Bounds(0, f"a whole number from 0 to {2**32 - 1}", high=2**32 - 1)
"""Of ``seed_everything``: numpy takes no other."""
_OF_CLASSES: dict[str, dict[str, Bounds]] = {
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint": {
        "save_top_k": Bounds(0, "0 or more, or -1 for all", also=(-1,)),
        "every_n_train_steps": _WHOLE_FROM_0,
        "every_n_epochs": _WHOLE_FROM_0,
    },
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping": {"patience": _WHOLE_FROM_0},
    "torch.optim.optimizer.Optimizer": {
        "lr": _ABOVE_0,
        "weight_decay": _FROM_0,
        "eps": _FROM_0,
        "betas": _SHARE,
        "momentum": _SHARE,
    },
    "torch.optim.lr_scheduler.LRScheduler": {
        "start_factor": Bounds(0, "a number in (0, 1]", high=1, without_low=True),
        "end_factor": Bounds(0, "a number in [0, 1]", high=1),
        "factor": Bounds(0, "a number in [0, 1]", high=1),
        "gamma": _ABOVE_0,
        "eta_min": _FROM_0,
        "total_iters": _STEPS,
        "total_steps": _STEPS,
        "step_size": _STEPS,
        "T_max": _STEPS,
        "T_0": _STEPS,
        "milestones": _WHOLE_FROM_0,
    },
}


def bounds_of(cls: type) -> dict[str, Bounds]:
    """The bounds of the arguments of a class, by their names; none of a class that is not in the table."""
    return {name: bounds for base in cls.__mro__ for name, bounds in _OF_CLASSES.get(_path(base), {}).items()}


def wrong_number(value: Any, bounds: Bounds | None = None) -> str:
    """What is wrong with the numbers in a value, however deep they lie; empty when nothing is.

    NaN and infinity are wrong everywhere: no key of a recipe or study means anything by them.

    Args:
        value: of a key; text that is a number counts as one where the key has bounds.
        bounds: of the key.

    Example:
        >>> wrong_number([1.0, float("nan")]), wrong_number(-1, TRAINER["gradient_clip_val"])
        ('a finite number', 'a number of at least 0 (0 clips nothing)')
    """
    numbers = list(_numbers(value, text=bounds is not None))
    if bounds is None or (bounds.alone and isinstance(value, list)):
        return "" if all(map(math.isfinite, numbers)) else "a finite number"
    return "" if all(math.isfinite(number) and bounds.holds(number) for number in numbers) else bounds.words


def _numbers(value: Any, text: bool) -> Iterable[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _numbers(each, text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value if isinstance(value, float) else _as_float(value)
    elif text and isinstance(value, str):
        try:
            yield float(value)
        except ValueError:
            return


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of 400 digits
        return math.inf if value > 0 else -math.inf


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
