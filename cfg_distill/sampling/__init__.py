"""Rollouts (groups of samples per prompt, plain or guided, every sampling parameter explicit) and decoded samples."""

from cfg_distill.sampling.conditioning import Codes, Conditioner, Labels
from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.opening import Opening
from cfg_distill.sampling.places import Places
from cfg_distill.sampling.rollout import Rollout, in_step, positions_left, problems_of_lengths, rollout
from cfg_distill.sampling.samples import Samples, decoded, draw
from cfg_distill.sampling.seeds import Seeds
from cfg_distill.sampling.start import StartModel

__all__ = [
    "Codes",
    "Conditioner",
    "Labels",
    "Opening",
    "Places",
    "Rollout",
    "Samples",
    "Sampling",
    "Seeds",
    "StartModel",
    "decoded",
    "draw",
    "in_step",
    "positions_left",
    "problems_of_lengths",
    "rollout",
]
