"""The loggers of a trainer that show more than numbers."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def writers(trainer: Trainer, method: str) -> list[Any]:
    """What lies behind the loggers that have one of the methods of TensorBoard's writer, such as ``add_audio``."""
    behind = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [writer for writer in behind if hasattr(writer, method)]
