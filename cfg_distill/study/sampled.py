"""How a system of a study is sampled: its settings and its guidance. No torch before they are called."""

from __future__ import annotations

from typing import Any

from cfg_distill.study.parts import Evaluation, SystemConfig


def sampling_of(evaluation: Evaluation, system: SystemConfig) -> Any:
    """How a system is sampled."""
    from cfg_distill.sampling import Sampling

    def of(key: str) -> Any:
        """The system's own setting, or that of the evaluation."""
        own = vars(system)[key]
        return vars(evaluation)[key] if own is None else own

    return Sampling(
        samples=evaluation.samples,
        max_new_tokens=evaluation.max_new_tokens,
        temperature=of("temperature"),
        top_k=of("top_k"),
        top_p=of("top_p"),
        min_p=of("min_p"),
    )


def generator_of(evaluation: Evaluation, system: SystemConfig) -> Any:
    """The model of a system, not loaded."""
    from cfg_distill.generators import open_generator

    return open_generator(system.model, dial=system.dial, dtype=system.dtype or evaluation.dtype)


def guidance_of(system: SystemConfig, longest: int) -> Any:
    """The guidance of a system.

    Args:
        system: its scale, and how the scale moves.
        longest: tokens or frames of the longest sample.
    """
    from cfg_distill.generators import Guidance

    negative, drop = system.negative, system.drop or "prompt"
    guidance = Guidance(system.guidance, negative, negative_system=system.negative_system, drop=drop)
    return guidance if system.schedule is None else system.schedule.on(guidance, longest)
