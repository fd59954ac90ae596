"""Resuming: a setting that the recipe has changed since the checkpoint wins over the checkpoint's.

A checkpoint holds numbers that were configured and may have moved since: a learning rate under its scheduler, a calibrated
weight. It also holds what was configured, so that a resumed run can tell the two apart: a number that the recipe has changed
is taken from the recipe, one that the run has moved goes on from where it stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from cfg_distill.checkpoints import RANDOM_STATES
from cfg_distill.errors import ConfigError, Problem, listed

_PLAIN = (bool, int, float, str, tuple, type(None))
# A new scheduler copies these from its optimiser: they are no settings of its own.
_OF_OPTIMIZER = {"base_lrs", "_last_lr"}


def settings_of(optimizer: Optimizer) -> dict[str, Any]:
    """The kind and the numbers of an optimiser, by parameter group: asked before a scheduler moves any."""
    groups = [
        {key: value for key, value in group.items() if isinstance(value, _PLAIN)} for group in optimizer.param_groups
    ]
    return {"kind": type(optimizer).__name__, "groups": groups}


def settings_of_scheduler(scheduler: Any) -> str:
    """The kind and the numbers of a new scheduler, as text: only whether they changed is ever asked."""

    def own(state: Any) -> Any:
        if isinstance(state, Mapping):
            return {key: own(value) for key, value in state.items() if key not in _OF_OPTIMIZER}
        if isinstance(state, list):
            return [own(value) for value in state]
        return state if isinstance(state, _PLAIN) else type(state).__name__  # no address in memory

    return f"{type(scheduler).__name__} {own(scheduler.state_dict())}"


def refuse_other_tensors(needed: AbstractSet[str], own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of another run.

    Args:
        needed: the names that it must have.
        own: the state dict of this run.
        saved: that of the checkpoint.

    Raises:
        ConfigError: names are missing or unexpected, or shapes differ; the first ones are named.
    """
    found = {
        "it lacks": needed - saved.keys(),
        "this run does not have": saved.keys() - own.keys(),
        "of other shapes are": {
            name
            for name in own.keys() & saved.keys()
            if own[name].shape != saved[name].shape and not _is_of_all_entries(name, saved[name])
        },
    }
    said = [f"{what} {listed(sorted(names), 3)}" for what, names in found.items() if names]
    if said:
        text = (
            f"the checkpoint is of another run: {'; '.join(said)}. Resume with the recipe of that run (its folder holds it as"
            " config.yaml), or export the student and begin a new run with it as `@/model.start`."
        )
        raise ConfigError(Problem("/ckpt_path", text))


def _is_of_all_entries(name: str, saved: Tensor) -> bool:
    """Whether it is the one count of a running mean of version 0.1, which the mean itself takes for all of its entries."""
    return name.endswith("past.updates") and saved.ndim == 0


def warn_of_other_processes(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Say what a fit loses that goes on with another number of processes, where the callback ExactResume cannot keep it.

    The callback keeps it, and says so, if the run before had it too.

    Args:
        checkpoint: as it was loaded; those of earlier versions do not say how many processes wrote them.
        trainer: of this run.
    """
    then, now = checkpoint["configured"].get("processes"), trainer.world_size
    callbacks = [callback.state_key for callback in trainer.callbacks]  # type: ignore[attr-defined]
    is_kept = RANDOM_STATES in checkpoint.get("callbacks", {}) and RANDOM_STATES in callbacks
    if not trainer.training or is_kept or then in (None, now):
        return
    rank_zero_warn(
        f"Going on with {now} process{'es' * (now > 1)}, where {then} began. Kept: weights, averages, optimiser and schedule,"
        " the step. Not kept: the place in the epoch, if a process now has other batches per epoch; the random states of"
        " dropout, and of rewards that draw. To keep the place, a run needs the callback `cfg_distill.callbacks.ExactResume`"
        " from its first step on: add it to `trainer.callbacks`."
    )


def weights_after(then: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """The weights of losses that the recipe has changed."""
    changed = {name: weight for name, weight in now.items() if name in then and then[name] != weight}
    for name, weight in changed.items():
        _say(f"model.losses.{name}.init_args.weight", then[name], weight)
    return changed


def take_settings(optimizer: Optimizer, scheduler: Any, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Set in a restored optimiser, in place, the numbers that the recipe has changed.

    A changed learning rate keeps the share of it that the scheduler has reached. Settings of the scheduler itself cannot
    change in the middle of its curve, and that is said.

    Args:
        optimizer: as the checkpoint left it.
        scheduler: as the checkpoint left it.
        then: ``{"optimizer": settings_of(...), "scheduler": settings_of_scheduler(...)}`` of the run that wrote the checkpoint.
        now: the same of this run.

    Raises:
        ConfigError: the checkpoint is of another kind of optimiser.
    """
    old, new = then["optimizer"], now["optimizer"]
    if old["kind"] != new["kind"]:
        raise ConfigError(
            f"Key `model.optimizer`: expected {old['kind']}, of which the checkpoint holds the state, but got {new['kind']}."
            " Give the same one, or export the student and begin a new run with it as `model.start`."
        )
    for number, (before, after) in enumerate(zip(old["groups"], new["groups"], strict=True)):
        group = optimizer.param_groups[number]
        for key, value in after.items():
            if before.get(key, value) == value:
                continue
            if key == "lr":
                _rescale(group, scheduler, number, before[key], value)
            else:
                group[key] = value
            _say(f"model.optimizer.init_args.{key}", before[key], value)
    if then["scheduler"] != now["scheduler"]:
        rank_zero_warn(
            "Key `model.scheduler`: changed since the checkpoint, but a curve goes on as it began: with the checkpoint's"
            " settings. For another one, export the student and begin a new run with it as `model.start`."
        )


def _rescale(group: dict[str, Any], scheduler: Any, number: int, before: float, after: float) -> None:
    reached = group["lr"] / before if before else 1.0
    group["lr"] = after * reached
    if "initial_lr" in group:
        group["initial_lr"] = after
    for each in _all_of(scheduler):
        if hasattr(each, "base_lrs"):
            each.base_lrs[number] = after
        if hasattr(each, "_last_lr"):
            each._last_lr[number] = group["lr"]


def _all_of(scheduler: Any) -> Sequence[Any]:
    """A scheduler, and the schedulers that it is made of."""
    return [scheduler, *(each for part in getattr(scheduler, "_schedulers", ()) for each in _all_of(part))]


def _say(key: str, before: Any, after: Any) -> None:
    before, after = (f"{value:g}" if isinstance(value, float) else value for value in (before, after))
    rank_zero_info(f"Going on with `{key}` {after}, where the checkpoint's run had {before}.")
