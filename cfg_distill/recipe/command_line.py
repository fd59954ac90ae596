"""The LightningCLI behind ``fit`` and ``validate``. Importing this module imports torch and lightning."""

from __future__ import annotations

import importlib
import logging
import os
import re
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cfg_distill.data import PromptData
from cfg_distill.errors import ConfigError
from cfg_distill.recipe.checks import Walk
from cfg_distill.recipe.files import run_name
from cfg_distill.recipe.overrides import overrides_of, put
from cfg_distill.recipe.progress import StepProgress

_VERSION = "CFG_DISTILL_RUN_VERSION"
_PARSING = (ArgumentError, MisconfigurationException)


class CommandLine(LightningCLI):
    """LightningCLI with this package's defaults: runs/<recipe>/version_N, and one error for all problems."""

    def __init__(
        self,
        command: str,
        words: Sequence[str],
        recipe: dict[str, Any],
        folder: str,
        check_only: bool = False,
        **settings: Any,
    ) -> None:
        self.words = list(words)
        self.check_only = check_only
        self.recipe = recipe
        self.folder = folder
        self.command = command
        strict = {"exit_on_error": False}
        super().__init__(
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**strict, "prog": "cfg-distill", "fit": dict(strict), "validate": dict(strict)},
            args=[command, *words],
            **settings,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate")}

    # Parsing

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        walk = Walk()
        own = self._subcommand_parsers[self.command]
        try:
            self.config = parser.parse_args(args)
        except _PARSING as error:
            raise ConfigError(self._all_problems(parser, walk, str(error))) from error
        good = walk.keys(own, self.recipe)
        problems = walk.nulls
        checkpoint = self.config[self.command].get("ckpt_path")
        if checkpoint not in (None, "last", "best", "hpc") and not Path(checkpoint).exists():
            problems.append(
                f"Key `ckpt_path`: expected a checkpoint or `last`, but `{checkpoint}` does not exist. Check the path."
            )
        if problems:
            raise ConfigError(_without_echoes(problems, self._problems_inside(good)))

    def _all_problems(self, parser: LightningArgumentParser, walk: Walk, first: str) -> list[str]:
        """After a parser gave up: every problem of files and options, and of what can be built without them."""
        own = self._subcommand_parsers[self.command]
        recipe, of_options = self.recipe, []
        walk.keys(own, recipe)
        for override in overrides_of(self.words):
            tried, again = put(recipe, override), Walk()
            again.keys(own, tried)
            if new := [problem for problem in again.problems if problem not in walk.problems]:
                of_options += new
            else:  # a good option; it may have mended what the files lack
                recipe, walk = tried, again
        walk.problems += of_options
        good = Walk().keys(own, recipe)
        return _without_echoes(walk.problems, self._problems_inside(good)) or [_shortened(first)]

    def _problems_inside(self, recipe: dict[str, Any]) -> list[str]:
        """What model and data themselves find wrong, where they can be built."""
        settings: tuple[tuple[str, Any, bool], ...] = (
            ("model", self._model_class, self.subclass_mode_model),
            ("data", self._datamodule_class, self.subclass_mode_data),
        )
        found: list[str] = []
        for key, base, by_path in settings:
            parser = ArgumentParser(exit_on_error=False)
            add = parser.add_subclass_arguments if by_path else parser.add_class_arguments
            add(base, key, fail_untyped=False)
            try:
                built = parser.instantiate_classes(parser.parse_object({key: recipe.get(key) or {}}))
            except ConfigError as error:
                found += map(str, error.problems)
            except Exception:
                continue  # it lacks what was wrong, and that has been said
            else:
                found += _problems_of(built.get(key))
        return found

    # Building

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's own lets the checkpoint's hyper-parameters win over file and command line."""

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ConfigError, MisconfigurationException, ValueError) as error:
            if not isinstance(error, ConfigError) and not _from_lightning(error):
                raise
            own = (
                list(map(str, error.problems))
                if isinstance(error, ConfigError)
                else [f"In `trainer`: {_shortened(str(error))}"]
            )
            self._dump_config()
            inside = [problem for problem in self._problems_inside(self.config_dump) if problem not in own]
            raise ConfigError([*own, *inside]) from error
        parts = (self.model, self.datamodule, *self.trainer.callbacks)  # type: ignore[attr-defined]
        problems = [problem for part in parts for problem in _problems_of(part)]
        if hasattr(self.model, "problems_with"):
            problems += self.model.problems_with(self.trainer)
        if not problems and isinstance(self.datamodule, PromptData) and hasattr(self.model, "problems_of_data"):
            self.datamodule.setup("fit")  # reads the prompts
            problems = self.model.problems_of_data(self.datamodule)
        if problems:
            raise ConfigError(problems)

    def _run_subcommand(self, subcommand: str) -> None:
        if not self.check_only:
            super()._run_subcommand(subcommand)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        if config.get("accelerator") == "auto" and MPSAccelerator.is_available():
            config["accelerator"] = "cpu"  # sampling takes float64, which MPS lacks
        root = config.get("default_root_dir") or self.folder
        config["default_root_dir"] = root
        if config.get("logger") in (None, True) and not config.get("fast_dev_run"):
            resume = self._get(self.config, "ckpt_path") == "last"
            config["logger"] = TensorBoardLogger(root, name="", version=run_version(Path(root), resume))
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        shown = config.get("enable_progress_bar") is not False and not any(isinstance(one, ProgressBar) for one in own)
        if shown and config["max_steps"] > 0:
            callbacks = [*callbacks, StepProgress()]
        return super()._instantiate_trainer(config, callbacks)


def run_version(root: Path, resume: bool) -> int:
    """N of the folder version_N: a new one, or with ``resume`` the latest that holds a last checkpoint."""
    if _VERSION in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":  # started by the first process of a run
        return int(os.environ[_VERSION])
    folders = root.glob("version_*") if root.is_dir() else ()
    versions = {int(folder.name[8:]): folder for folder in folders if re.fullmatch(r"version_\d+", folder.name)}
    resumable = [n for n, folder in versions.items() if resume and any(folder.glob("checkpoints/last*.ckpt"))]
    version = max(resumable) if resumable else max(versions, default=-1) + 1
    os.environ[_VERSION] = str(version)
    return version


def start(
    command: str, words: Sequence[str], files: Sequence[Path], recipe: dict[str, Any], check_only: bool = False
) -> None:
    """Build the command line for what the recipe names, and run it, unless it shall only be checked.

    Raises:
        ConfigError: all problems of the configuration, before any weight is loaded.
    """
    _quieten()
    model_by_path, data_by_path = (_names_class(key, words, recipe) for key in ("model", "data"))
    try:
        CommandLine(
            command,
            words,
            recipe,
            folder=f"runs/{run_name(files)}",
            check_only=check_only,
            model_class=LightningModule if model_by_path else _default("distillation", "CFGDistillation"),
            datamodule_class=LightningDataModule if data_by_path else _default("data", "PromptData"),
            subclass_mode_model=model_by_path,
            subclass_mode_data=data_by_path,
        )
    except MisconfigurationException as error:  # what Lightning finds wrong once it runs, such as a metric to monitor
        raise ConfigError(_shortened(str(error))) from error


def _quieten() -> None:
    """Silence what says nothing about the run: advertisements, and deprecations inside Lightning and torchdata."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(lambda record: "Tip: For seamless" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".*set_vital", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    # Prompts need no worker processes: reading one is a list index.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # No validation prompts: that was the wish.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # `--ckpt_path last` also starts a run; one that goes on finds its own checkpoints, and another may go on from them.
    warnings.filterwarnings("ignore", message=".*there is no last checkpoint available")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    # The summary counts four bytes a parameter, and mixed precision keeps as many.
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
    # On purpose: the student trains without dropout, and its teacher never leaves eval mode.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")


def _default(module: str, name: str) -> Any:
    """Imported when asked for: a recipe that trains another model needs none of the distillation."""
    return getattr(importlib.import_module(f"cfg_distill.{module}"), name)


def _names_class(key: str, words: Sequence[str], recipe: dict[str, Any]) -> bool:
    """Whether the recipe or the command line names a class of its own for ``model`` or ``data``."""
    given = any(re.match(rf"--{key}(\.class_path)?(=|$)", word) for word in words)
    return given or isinstance(recipe.get(key), str) or "class_path" in (recipe.get(key) or {})


def _problems_of(part: Any) -> list[str]:
    problems = getattr(part, "problems", None)
    return list(problems()) if callable(problems) else []


def _without_echoes(found: list[str], inside: list[str]) -> list[str]:
    """All problems, less those that a part has only because something beneath its key was wrong and left out."""
    keys = [match[1] for problem in found if (match := re.match(r"Key `([^`]+)`", problem))]

    def echoes(problem: str) -> bool:
        match = re.match(r"Key `([^`]+)`", problem)
        return match is not None and any(
            key == match[1] or key.startswith((f"{match[1]}.", f"{match[1]}[")) for key in keys
        )

    return found + [problem for problem in inside if problem not in found and not echoes(problem)]


def _from_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised it: then a setting of the trainer is wrong, not our code."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, MisconfigurationException) or f"{os.sep}lightning{os.sep}" in place


def _shortened(message: str) -> str:
    return " ".join(message.split())
