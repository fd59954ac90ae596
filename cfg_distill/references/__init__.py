"""What samples are compared with: real outputs as vectors, and their weights for each prompt."""

from cfg_distill.references.base import Reference, problems_of_length
from cfg_distill.references.contrasts import Contrasts
from cfg_distill.references.density import Bank, Banks, bank_of, neighbour_distances, pseudo_density
from cfg_distill.references.directions import Directions, code_log_probs
from cfg_distill.references.functions import mean_distance, prototypes, weight_of_pairs, within, witness, witness_pairs
from cfg_distill.references.kernels import (
    Kernel,
    KernelChoice,
    energy_kernel,
    gaussian_kernel,
    gaussian_mixture,
    mean_kernel_within,
    median_distance,
)
from cfg_distill.references.sounds import SOUNDS, Sounds
from cfg_distill.references.start_samples import StartSamples
from cfg_distill.references.texts import Texts

__all__ = [
    "SOUNDS",
    "Bank",
    "Banks",
    "Contrasts",
    "Directions",
    "Kernel",
    "KernelChoice",
    "Reference",
    "Sounds",
    "StartSamples",
    "Texts",
    "bank_of",
    "code_log_probs",
    "energy_kernel",
    "gaussian_kernel",
    "gaussian_mixture",
    "mean_distance",
    "mean_kernel_within",
    "median_distance",
    "neighbour_distances",
    "problems_of_length",
    "prototypes",
    "pseudo_density",
    "weight_of_pairs",
    "within",
    "witness",
    "witness_pairs",
]
