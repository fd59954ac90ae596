"""What the training of the encoder and of the judge share: the network, its optimiser, and writing the folder."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.cli import OptimizerCallable

from cfg_distill.errors import ConfigError
from cfg_distill.tunes.network import NetworkConfig, TuneNetwork
from cfg_distill.tunes.pretraining import warmup_cosine


class NetworkTraining(lightning.LightningModule, ABC):
    """Trains a `TuneNetwork`; at the end of a fit the best weights (by the trainer's ModelCheckpoint; the last ones if
    there is none) are written to ``out``.

    Args:
        optimizer: of all parameters.
        out: the folder to write: config.json and model.safetensors.
        overwrite: write even when the folder holds a model.
        width, blocks, kernel, dropout: of the network (see `NetworkConfig`).
        warmup_steps: of the learning rate.
        decay_steps: the step at which it has fallen to 0.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        out: str = "runs/tunes/network",
        overwrite: bool = False,
        width: int = 96,
        blocks: int = 5,
        kernel: int = 5,
        dropout: float = 0.15,
        warmup_steps: int = 50,
        decay_steps: int = 1000,
    ) -> None:
        super().__init__()
        self.optimizer, self.out, self.overwrite = optimizer, out, overwrite
        self.width, self.blocks, self.kernel, self.dropout = width, blocks, kernel, dropout
        self.warmup_steps, self.decay_steps = warmup_steps, decay_steps

    @abstractmethod
    def heads(self) -> dict[str, int]:
        """Outputs of the network by name, with their widths."""

    def finish(self) -> None:
        """Called with the best weights in place, just before they are written."""

    def configure_model(self) -> None:
        if not hasattr(self, "network"):
            music = self.trainer.datamodule.music  # type: ignore[attr-defined]
            self.network = TuneNetwork(
                NetworkConfig(music, self.heads(), self.width, self.blocks, self.kernel, self.dropout)
            )

    def on_fit_start(self) -> None:
        if not self.overwrite and (Path(self.out) / "config.json").exists():
            raise ConfigError(
                f"Key `model.out`: expected a folder without a model, but `{self.out}` holds one."
                " Name another, or set model.overwrite to true."
            )

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.warmup_steps, self.decay_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if best:
            self.load_state_dict(torch.load(best, map_location=self.device, weights_only=True)["state_dict"])
        self.network.eval()
        with torch.no_grad():
            self.finish()
        self.network.save(self.out)
