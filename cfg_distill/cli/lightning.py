"""The LightningCLI behind ``fit`` and ``validate``. Importing this module imports torch and lightning."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from cfg_distill.cli.fit import run_name

_VERSION = "CFG_DISTILL_RUN_VERSION"


class CommandLine(LightningCLI):
    """LightningCLI with this package's defaults: runs/<recipe>/version_N, a student-only optimiser, one error for all problems."""

    def __init__(self, *args: Any, run_folder: str, **kwargs: Any) -> None:
        self.run_folder = run_folder
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate")}

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's own lets the hyper-parameters saved in the checkpoint win over file and command line."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        root = config.get("default_root_dir") or self.run_folder
        config["default_root_dir"] = root
        if config.get("logger") in (None, True) and not config.get("fast_dev_run"):
            resume = self._get(self.config, "ckpt_path") == "last"
            config["logger"] = TensorBoardLogger(root, name="", version=run_version(Path(root), resume))
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


def start(command: str, words: Sequence[str], files: Sequence[Path], recipe: dict[str, Any]) -> None:
    """Build the command line for what the recipe names, and run it."""
    model_by_path, data_by_path = (_names_class(key, words, recipe) for key in ("model", "data"))
    CommandLine(
        LightningModule if model_by_path else _default("distillation", "CFGDistillation"),
        LightningDataModule if data_by_path else _default("data", "PromptData"),
        subclass_mode_model=model_by_path,
        subclass_mode_data=data_by_path,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        run_folder=f"runs/{run_name(files)}",
        args=[command, *words],
    )


def _default(module: str, name: str) -> Any:
    """Imported when asked for: a recipe that trains another model needs none of the distillation."""
    return getattr(importlib.import_module(f"cfg_distill.{module}"), name)


def _names_class(key: str, words: Sequence[str], recipe: dict[str, Any]) -> bool:
    """Whether the recipe or the command line names a class of its own for ``model`` or ``data``."""
    given = any(re.match(rf"--{key}(\.class_path)?(=|$)", word) for word in words)
    return given or "class_path" in (recipe.get(key) or {})
