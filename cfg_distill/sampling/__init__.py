"""Rollouts (groups of samples per prompt, plain or guided, every sampling parameter explicit) and decoded samples."""

from cfg_distill.sampling.conditioning import Codes, Conditioner, Labels
from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.opening import Opening
from cfg_distill.sampling.places import Places
from cfg_distill.sampling.rollout import (
    Rollout,
    in_step,
    positions_left,
    problems_of_lengths,
    problems_of_reading,
    rollout,
)
from cfg_distill.sampling.sampler import OwnLoop, Sampler
from cfg_distill.sampling.samples import Samples, decoded, draw
from cfg_distill.sampling.seeds import Seeds
from cfg_distill.sampling.start import StartModel
from cfg_distill.sampling.vllm import VLLM

__all__ = [
    "VLLM",
    "Codes",
    "Conditioner",
    "Labels",
    "Opening",
    "OwnLoop",
    "Places",
    "Rollout",
    "Sampler",
    "Samples",
    "Sampling",
    "Seeds",
    "StartModel",
    "decoded",
    "draw",
    "in_step",
    "positions_left",
    "problems_of_lengths",
    "problems_of_reading",
    "rollout",
]
