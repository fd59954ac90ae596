"""Rollouts: groups of samples a prompt, plain or guided, with a KV cache and every sampling parameter explicit."""

from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.rollout import Rollout, positions_left, problems_of_lengths, rollout

__all__ = ["Rollout", "Sampling", "positions_left", "problems_of_lengths", "rollout"]
