"""Rollouts (groups of samples per prompt, plain or guided, every sampling parameter explicit) and decoded samples."""

from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.places import Places
from cfg_distill.sampling.rollout import Rollout, in_step, positions_left, problems_of_lengths, rollout
from cfg_distill.sampling.samples import Samples, decoded, draw
from cfg_distill.sampling.seeds import Seeds

__all__ = [
    "Places",
    "Rollout",
    "Samples",
    "Sampling",
    "Seeds",
    "decoded",
    "draw",
    "in_step",
    "positions_left",
    "problems_of_lengths",
    "rollout",
]
