"""What the student is trained by: divergences from the guided teacher, and the policy gradient of a group reward."""

from cfg_distill.losses.base import Loss, LossInputs
from cfg_distill.losses.distillation import EntropyAwareKL, ForwardKL, JensenShannon, ReverseKL
from cfg_distill.losses.divergences import entropy, entropy_aware_kl, forward_kl, jensen_shannon, reverse_kl
from cfg_distill.losses.policy_gradient import PolicyGradient, token_log_probs

__all__ = [
    "EntropyAwareKL",
    "ForwardKL",
    "JensenShannon",
    "Loss",
    "LossInputs",
    "PolicyGradient",
    "ReverseKL",
    "entropy",
    "entropy_aware_kl",
    "forward_kl",
    "jensen_shannon",
    "reverse_kl",
    "token_log_probs",
]
