"""Lightning callbacks, one a file, and a checkpoint plugin. Import only as ``cfg_distill.callbacks``."""

from cfg_distill.callbacks.beta_calibration import BetaCalibration
from cfg_distill.callbacks.checkpoint_io import AtomicCheckpointIO
from cfg_distill.callbacks.checkpoint_merging import CheckpointMerging
from cfg_distill.callbacks.collapse_guard import CollapseGuard
from cfg_distill.callbacks.diversity_logging import DiversityLogging
from cfg_distill.callbacks.exact_resume import ExactResume
from cfg_distill.callbacks.reward_histograms import RewardHistograms
from cfg_distill.callbacks.sample_logging import SampleLogging
from cfg_distill.callbacks.student_ema import StudentEMA
from cfg_distill.callbacks.throughput import Throughput

__all__ = [
    "AtomicCheckpointIO",
    "BetaCalibration",
    "CheckpointMerging",
    "CollapseGuard",
    "DiversityLogging",
    "ExactResume",
    "RewardHistograms",
    "SampleLogging",
    "StudentEMA",
    "Throughput",
]
