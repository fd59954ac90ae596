"""The whole configuration of a run, saved in the folder of the run."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.tensorboard.summary import hparams

from cfg_distill.files import read_yaml

CONFIG = "config.yaml"


class SaveRecipe(SaveConfigCallback):
    """Writes ``config.yaml`` beside the checkpoints, and over no file of the user's.

    Lightning's own writes into the ``save_dir`` of the logger. That is the current folder for W&B, where a recipe of that name
    may lie, and it fails where there is none: MLflow behind a server or a database.

    Args:
        parser: that writes the file.
        config: of the command.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return  # the file is the record of the fit that is validated
        folder = folder_of(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        file, numbers = folder / CONFIG, count(1)
        while not trainer.loggers and file.exists():  # the folder is no folder of this run alone
            file = folder / f"config_{next(numbers)}.yaml"
        config = self.config.clone()
        # A run is named after its recipe, and this file is named otherwise: with it the run is found again.
        config["trainer"]["default_root_dir"] = str(trainer.default_root_dir)
        self.parser.save(config, str(file), skip_none=False, overwrite=True, multifile=False)
        settings = flat(read_yaml(file))
        del settings["ckpt_path"]  # of this start, and not of the run
        for logger in trainer.loggers:  # W&B and MLflow tell runs apart by them
            try:
                logger.log_hyperparams(settings)
                if isinstance(logger, TensorBoardLogger):
                    fill_hparams(logger, settings)
            except (
                Exception
            ) as error:  # whatever its library raises: MLflow takes no setting that a resumed run changed
                rank_zero_warn(f"{type(logger).__name__} took no settings: {error}")


def fill_hparams(logger: TensorBoardLogger, settings: dict[str, Any]) -> None:
    """Tell TensorBoard's page HParams the settings of a run.

    Lightning does so only together with values of metrics, which it adds to their curves at step 0. Without them the page
    takes the last value of each curve.
    """
    _, start, _ = hparams(settings, {})
    logger.experiment._get_file_writer().add_summary(start)  # as Lightning does: SummaryWriter has no public way


def flat(settings: Any, under: str = "") -> dict[str, Any]:
    """Settings by their whole keys.

    Example:
        >>> flat({"model": {"guidance": {"scale": 3.0}}, "callbacks": []})
        {'model.guidance.scale': 3.0, 'callbacks': '[]'}
    """
    if isinstance(settings, dict) and settings:
        return {name: value for key, each in settings.items() for name, value in flat(each, f"{under}.{key}").items()}
    plain = isinstance(settings, bool | int | float | str)
    return {under.removeprefix("."): settings if plain else str(settings)}


def folder_of(trainer: Trainer) -> Path:
    """The folder of a run: that of its first logger, as ``ModelCheckpoint`` has it; the trainer's root without a logger."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    first = trainer.loggers[0]
    if isinstance(first, TensorBoardLogger | CSVLogger):
        return Path(first.log_dir)
    version = first.version if isinstance(first.version, str) else f"version_{first.version}"
    return Path(first.save_dir or trainer.default_root_dir) / str(first.name) / version
