"""Rollouts (groups of samples per prompt, plain or guided, every sampling parameter explicit) and decoded samples."""

from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.rollout import Rollout, positions_left, problems_of_lengths, rollout
from cfg_distill.sampling.samples import Samples, decoded, draw
from cfg_distill.sampling.seeds import Seeds

__all__ = [
    "Rollout",
    "Samples",
    "Sampling",
    "Seeds",
    "decoded",
    "draw",
    "positions_left",
    "problems_of_lengths",
    "rollout",
]
