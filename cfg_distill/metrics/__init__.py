"""torchmetrics classes over pure functions: diversity, quality, guards."""

import importlib
from typing import Any

from cfg_distill.metrics.audio import (
    AudioRepetition,
    CLAPAdherence,
    ClippingRate,
    SilenceRate,
    WaveformMetric,
    clipped_share,
    repeated_share,
    silent_share,
)
from cfg_distill.metrics.base import EmbeddingMetric, SampleMetric, TextMetric
from cfg_distill.metrics.corpus import FAD, KAD, CorpusMetric, frechet_distance, kernel_distance
from cfg_distill.metrics.degeneration import Degeneration, EmptyShare, degenerate, is_empty
from cfg_distill.metrics.distinct import CoverageAtK, DistinctAtK, coverage_at_k, distinct_at_k
from cfg_distill.metrics.embedding import PairwiseCosineDiversity, PromptAdherence, VendiScore, vendi_score
from cfg_distill.metrics.lexical import (
    EAD,
    DistinctN,
    Length,
    Repetition,
    SelfBLEUDiversity,
    distinct_n,
    expectation_adjusted_distinct,
    repeated_n,
)
from cfg_distill.metrics.likelihood import (
    LikelihoodMetric,
    LogProbability,
    NucleusSize,
    PointwiseMutualInformation,
    SampledEntropy,
    log_likelihood,
    nucleus_sizes,
)
from cfg_distill.metrics.paired import Retention
from cfg_distill.metrics.referred import CodeAccuracy, KernelDistance, PromptRetrieval, PseudoDensity
from cfg_distill.metrics.sound_guards import Noise, SiblingCopies, flatness, is_copy
from cfg_distill.metrics.substance import Substance, clipped_information

__all__ = [
    "EAD",
    "FAD",
    "KAD",
    "AudioRepetition",
    "CLAPAdherence",
    "ClippingRate",
    "CodeAccuracy",
    "CorpusMetric",
    "CoverageAtK",
    "Degeneration",
    "DistinctAtK",
    "DistinctN",
    "EmbeddingMetric",
    "EmptyShare",
    "KernelDistance",
    "Length",
    "LikelihoodMetric",
    "LogProbability",
    "Noise",
    "NucleusSize",
    "PairwiseCosineDiversity",
    "PointwiseMutualInformation",
    "PromptAdherence",
    "PromptRetrieval",
    "PseudoDensity",
    "Repetition",
    "Retention",
    "SampleMetric",
    "SampledEntropy",
    "SelfBLEUDiversity",
    "SiblingCopies",
    "SilenceRate",
    "Substance",
    "TextMetric",
    "VendiScore",
    "WaveformMetric",
    "clipped_information",
    "clipped_share",
    "coverage_at_k",
    "degenerate",
    "distinct_at_k",
    "distinct_n",
    "expectation_adjusted_distinct",
    "flatness",
    "frechet_distance",
    "is_copy",
    "is_empty",
    "kernel_distance",
    "log_likelihood",
    "nucleus_sizes",
    "repeated_n",
    "repeated_share",
    "silent_share",
    "vendi_score",
]


def __getattr__(name: str) -> Any:
    """Fronts and intervals, which moved to :mod:`cfg_distill.evaluation.front`: reachable here for one release."""
    if name in ("Interval", "bootstrap_interval", "hypervolume", "pareto"):
        return vars(importlib.import_module("cfg_distill.evaluation.front"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
