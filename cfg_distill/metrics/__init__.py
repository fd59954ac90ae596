"""torchmetrics classes over pure functions: diversity, quality, guards, distance to the teacher; fronts, intervals."""

from cfg_distill.metrics.base import EmbeddingMetric, SampleMetric, TextMetric
from cfg_distill.metrics.embedding import PairwiseCosineDiversity, PromptAdherence, VendiScore, vendi_score
from cfg_distill.metrics.front import Interval, bootstrap_interval, hypervolume, pareto
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
from cfg_distill.metrics.model import Entropy, KLToTeacher

__all__ = [
    "EAD",
    "DistinctN",
    "EmbeddingMetric",
    "Entropy",
    "Interval",
    "KLToTeacher",
    "Length",
    "PairwiseCosineDiversity",
    "PromptAdherence",
    "Repetition",
    "SampleMetric",
    "SelfBLEUDiversity",
    "TextMetric",
    "VendiScore",
    "bootstrap_interval",
    "distinct_n",
    "expectation_adjusted_distinct",
    "hypervolume",
    "pareto",
    "repeated_n",
    "vendi_score",
]
