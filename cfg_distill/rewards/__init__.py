"""Rewards: functions of a group of samples that training raises, each with its right baseline."""

from cfg_distill.embedders import Frozen
from cfg_distill.rewards.base import GroupReward, Reward
from cfg_distill.rewards.code import CodeInformation
from cfg_distill.rewards.compared import Compared
from cfg_distill.rewards.contrast import PromptContrast
from cfg_distill.rewards.density import Density
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.rewards.lexical import AvgOutScore
from cfg_distill.rewards.mixed import Mixed
from cfg_distill.rewards.paired import PairedContrast, SimilarityMatch
from cfg_distill.rewards.pairwise import PairwiseDiversity, PairwiseReward, pairwise_baseline, pairwise_diversity
from cfg_distill.rewards.sample import PromptAdherence, SampleReward, leave_one_out
from cfg_distill.rewards.sets import LogDeterminant, VendiScore, log_determinant, vendi_score
from cfg_distill.rewards.statistic import BatchStatistic, GroupStatistic
from cfg_distill.rewards.target import DiversityTarget
from cfg_distill.rewards.witness import Witness

__all__ = [
    "AvgOutScore",
    "BatchStatistic",
    "CodeInformation",
    "Compared",
    "Density",
    "DiversityTarget",
    "Frozen",
    "GroupReward",
    "GroupStatistic",
    "LogDeterminant",
    "Mixed",
    "PairedContrast",
    "PairwiseDiversity",
    "PairwiseReward",
    "PromptAdherence",
    "PromptContrast",
    "Reward",
    "SampleReward",
    "SimilarityMatch",
    "UnderEmbedder",
    "VendiScore",
    "Witness",
    "leave_one_out",
    "log_determinant",
    "pairwise_baseline",
    "pairwise_diversity",
    "vendi_score",
]
