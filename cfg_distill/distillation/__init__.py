"""The LightningModule of the method, and its settings, gradients, memory and resuming."""

from cfg_distill.distillation.module import CFGDistillation
from cfg_distill.distillation.sharding import FSDP2

__all__ = ["FSDP2", "CFGDistillation"]
