"""The terms that train the student: divergences from the guided teacher, and the policy gradient of a group reward."""

from cfg_distill.losses.average_output import MinAvgOut
from cfg_distill.losses.base import CellLoss, Loss, LossInputs, mix
from cfg_distill.losses.chunked import LOGITS_CHUNK, Cells, CellTerm, sum_over_cells
from cfg_distill.losses.distillation import (
    CrossEntropy,
    Divergence,
    EntropyAwareKL,
    ForwardKL,
    JensenShannon,
    ReverseKL,
)
from cfg_distill.losses.divergences import entropy_aware_kl, forward_kl, jensen_shannon, reverse_kl
from cfg_distill.losses.policy_gradient import PolicyGradient, token_log_probs

__all__ = [
    "LOGITS_CHUNK",
    "CellLoss",
    "CellTerm",
    "Cells",
    "CrossEntropy",
    "Divergence",
    "EntropyAwareKL",
    "ForwardKL",
    "JensenShannon",
    "Loss",
    "LossInputs",
    "MinAvgOut",
    "PolicyGradient",
    "ReverseKL",
    "entropy_aware_kl",
    "forward_kl",
    "jensen_shannon",
    "mix",
    "reverse_kl",
    "sum_over_cells",
    "token_log_probs",
]
