"""A Trainer whose callbacks have names, and what follows from their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from cfg_distill.errors import Problem, nearest
from cfg_distill.files import expanded, problems_of_place
from cfg_distill.recipe.ranks import problems_of_devices
from cfg_distill.recipe.runs import RunMark

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp2")
"""The names of ``trainer.strategy`` under which a distillation runs."""
_NOT_LOGGED = re.compile(
    r"Early stopping conditioned on metric `(.*)` which is not available.* following: `(.*)`", re.S
)
"""What EarlyStopping says of its ``monitor`` after the first validation, in a RuntimeError as many others are."""


class NamedTrainer(Trainer):
    """A Trainer whose callbacks may have names, so that a file or an option can change one of them.

    Args:
        callbacks: a dict of names, or a list.
        settings: those of a Trainer.
    """

    def __init__(
        self,
        callbacks: dict[str, Callback] | list[Callback] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(callbacks=list(named_callbacks(callbacks).values()), **settings)

    def _run_stage(self) -> Any:
        """Also begin and end the training of a run that has taken its last step, but was stopped before its end.

        Lightning's loop skips it, and with it a validation that is due and what callbacks do at the end.
        """
        found = super()._run_stage()
        callbacks: list[Callback] = vars(self)["callbacks"]  # Lightning sets it from elsewhere
        if any(isinstance(each, RunMark) and each.ended_early(self) for each in callbacks) and self.fit_loop.done:
            self.fit_loop.on_run_start()
            self.fit_loop.on_run_end()
        return found


def named_callbacks(callbacks: Any) -> dict[Any, Callback]:
    """Callbacks by name, or by number where they have none."""
    return callbacks if isinstance(callbacks, dict) else dict(enumerate(callbacks or ()))


def write_out_devices(specs: Iterable[Any]) -> None:
    """Put the name of a device in its place among the arguments of callbacks.

    A device is the default of Lightning's StochasticWeightAveraging, and jsonargparse cannot write one into ``config.yaml``.

    Args:
        specs: callbacks by ``class_path`` and ``init_args``, which are changed.
    """
    for spec in specs:
        arguments = spec.get("init_args") or {}
        for key in [key for key, value in arguments.items() if isinstance(value, torch.device)]:
            arguments[key] = str(arguments[key])


def paths_of(callbacks: Any) -> list[str]:
    """The path in the recipe of the arguments of each callback."""
    names = [f".{name}" if isinstance(callbacks, dict) else f"[{name}]" for name in named_callbacks(callbacks)]
    return [f"trainer.callbacks{name}.init_args" for name in names]


def problems_of_settings(settings: Mapping[str, Any], root: str, distils: bool) -> list[Problem]:
    """What is wrong with folder, devices and strategy of a trainer, found before one is built.

    Args:
        settings: of the trainer, as the recipe gives them.
        root: the folder of its runs.
        distils: whether it trains a distillation, which does not run under every strategy.
    """
    problems = [Problem("/trainer.default_root_dir", each.text) for each in problems_of_place(root)]
    if expanded(root).is_file():
        problems.append(Problem("/trainer.default_root_dir", f"`{root}` is a file. Name another folder."))
    problems += problems_of_devices(settings.get("accelerator"), settings.get("devices"))
    return problems + (problems_of_strategy(settings.get("strategy")) if distils else [])


def problems_of_strategy(given: Any) -> list[Problem]:
    """Why no distillation runs under a strategy that is given by its name. One that is given as a class is judged once built.

    Lightning's names of processes that are forked or spawned are among the refused: each would be a run of its own.
    """
    if not isinstance(given, str) or given in STRATEGIES:
        return []
    text = (
        f"expected one of {', '.join(STRATEGIES)}, but got {given}. Set it to ddp, or to fsdp2 where no single device holds"
        " student and teacher."
    )
    return [Problem("/trainer.strategy", text)]


def problems_of_states(callbacks: dict[str, Callback]) -> list[Problem]:
    """Callbacks whose states a checkpoint could not tell apart; Lightning's rule, with our keys."""
    first: dict[str, str] = {}
    problems = []
    for path, callback in callbacks.items():
        key = path.removesuffix(".init_args")
        if not is_overridden("state_dict", callback, parent=Callback):
            continue
        if callback.state_key in first:
            problems.append(
                Problem(
                    f"/{key}",
                    f"expected one {type(callback).__name__}, but `@/{first[callback.state_key]}` is one too, and a checkpoint"
                    " could not tell their states apart. Change that one, or remove one of them.",
                )
            )
        first.setdefault(callback.state_key, key)
    return problems


def said_of_monitor(error: Exception) -> str:
    """What Lightning finds wrong once a fit runs: a metric to monitor that nobody logs. Empty for another error."""
    if isinstance(error, MisconfigurationException):
        return " ".join(str(error).split())
    if not (found := _NOT_LOGGED.match(str(error))):
        return ""
    metric, known = found[1], found[2].split("`, `")
    return (
        f"Callback EarlyStopping: expected as `monitor` one of {', '.join(f'`{each}`' for each in known)}, but got `{metric}`,"
        f" which nothing logs.{nearest(metric, known)}"
    )
