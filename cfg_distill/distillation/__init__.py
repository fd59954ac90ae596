"""The LightningModule of the method, and its settings, gradients, memory and resuming."""

from cfg_distill.distillation.module import CFGDistillation

__all__ = ["CFGDistillation"]
