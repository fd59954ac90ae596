"""Which trainers a distillation can run under."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def problems_of_trainer(trainer: Trainer) -> list[str]:
    """What of a trainer's settings would stop or spoil a distillation, a sentence each.

    - Precisions that cast the module: steps of fine-tuning are lost in the rounding of half precision, and so are beta and
      the factors of an adapter.
    - Strategies that shard the student, which is not supported; those that are run a whole student in each process.
    - Apple's MPS, which has no float64: drawing from a large vocabulary takes it.
    """
    found = []
    if trainer.precision not in PRECISIONS:
        found.append(
            f"Key `trainer.precision`: expected one of {', '.join(PRECISIONS)}, since what is trained must be float32, but got"
            f" {trainer.precision}. Take bf16-mixed, or `model.generator.dtype: bfloat16` with a `model.generator.lora`."
        )
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        found.append(
            "Key `trainer.strategy`: expected auto or a kind of ddp, since a student in shards is not supported, but got"
            f" {type(trainer.strategy).__name__}. Take ddp; where memory is short, a `model.generator.lora`."
        )
    if isinstance(trainer.accelerator, MPSAccelerator):
        found.append(
            "Key `trainer.accelerator`: expected cpu or cuda, since sampling takes float64, but got mps. Set it to cpu."
        )
    return found
