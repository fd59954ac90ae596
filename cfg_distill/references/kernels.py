"""Kernels between vectors. Shapes: N, M and R vectors of sets, D embedding width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Problem

Kernel = Callable[[Tensor, Tensor], Tensor]
"""From ``[..., N, D]`` and ``[..., M, D]`` to ``[..., N, M]``."""

CELLS = 2**24
"""Kernels that exist at once: 128 MB."""
MOST_FOR_BANDWIDTH = 4096
WIDTHS = (0.5, 1.0, 2.0)
"""Bandwidths as multiples of the median distance in the reference."""


def gaussian_kernel(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    r""":math:`e^{-\lVert a - b \rVert^2 / (2 \sigma^2)}`, from ``[..., N, D]`` and ``[..., M, D]`` to ``[..., N, M]``."""
    distance_NM = torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
    return torch.exp(-distance_NM.square() / (2 * bandwidth**2))


def gaussian_mixture(bandwidths: Sequence[float]) -> Kernel:
    """The mean of the Gaussian kernels of several bandwidths: what a small one sees near by, a large one sees far off."""
    return lambda a, b: torch.stack([gaussian_kernel(a, b, each) for each in bandwidths]).mean(0)


def energy_kernel(a: Tensor, b: Tensor) -> Tensor:
    r""":math:`-\lVert a - b \rVert`: the squared distance of its mean embeddings is half the energy distance; no bandwidth."""
    return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def median_distance(vectors: Tensor) -> float:
    """The median distance between two of the vectors, ``[R, D]``: the bandwidth of a Gaussian kernel; at least 1e-6.

    More than 4,096 vectors are represented by 4,096 of them, drawn with a fixed seed: pairs grow with the square.
    """
    if len(vectors) > MOST_FOR_BANDWIDTH:
        drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:MOST_FOR_BANDWIDTH]
        vectors = vectors[drawn.to(vectors.device)]
    # Tensor.median() takes the lower of two middle values.
    return max(float(torch.pdist(vectors.double()).quantile(0.5)), 1e-6)  # a reference of copies has none


def mean_kernel_within(vectors: Tensor, bandwidth: float) -> Tensor:
    """The mean Gaussian kernel of two different ones of the vectors, ``[R, D]``: a float64 scalar."""
    y_RD = vectors.double()
    rows, total = rows_at_once(y_RD), torch.zeros((), dtype=torch.float64, device=vectors.device)
    for start in range(0, len(y_RD), rows):
        part_ND, rest_MD = y_RD[start : start + rows], y_RD[start + rows :]
        own_NN = gaussian_kernel(part_ND, part_ND, bandwidth)
        total += own_NN.sum() - own_NN.trace() + 2 * gaussian_kernel(part_ND, rest_MD, bandwidth).sum()
    return total / (len(y_RD) * (len(y_RD) - 1))


def rows_at_once(vectors: Tensor) -> int:
    """How many vectors at once meet all of these."""
    return max(1, CELLS // len(vectors))


class KernelChoice:
    """A kernel by its name, with bandwidths that may come from the reference: the settings of a reward or a metric.

    Args:
        name: ``gaussian``, the mean over the bandwidths; ``energy``, minus the distance.
        bandwidths: of the Gaussian kernel; empty takes 0.5, 1 and 2 times the median distance of the reference.
    """

    def __init__(self, name: str, bandwidths: Sequence[float]) -> None:
        self.name = name
        self.bandwidths = tuple(bandwidths)
        self._made: Kernel | None = None

    def problems(self, shared: bool) -> list[Problem]:
        """What is wrong with the name and the bandwidths.

        Args:
            shared: whether the reference is one set for all prompts.
        """
        found = []
        if self.name not in ("gaussian", "energy"):
            found.append(Problem("kernel", f"expected `gaussian` or `energy`, but got `{self.name}`."))
        if wrong := [width for width in self.bandwidths if not 0 < width < math.inf]:
            found.append(Problem("bandwidths", f"expected numbers above 0, but got {wrong[0]}."))
        if self.name == "gaussian" and not self.bandwidths and not shared:
            text = "expected numbers above 0, since the outputs of a few prompts have no median distance of all, but got none."
            found.append(Problem("bandwidths", f"{text} Take [0.7, 1.4, 2.8] for vectors of length 1, say."))
        return found

    def of(self, vectors: Tensor) -> Kernel:
        """The kernel for a reference, ``[R, D]``; made once.

        Raises:
            ConfigError: no bandwidth is given, and the reference has fewer than 2 outputs.
        """
        if self._made is None:
            self._made = energy_kernel if self.name == "energy" else gaussian_mixture(self._widths(vectors))
        return self._made

    def lowest(self, vectors: Tensor) -> float:
        """The lowest a + a' - k that two samples can have: far from the reference, ``[R, D]``, and on top of each other."""
        # Vectors as long as the reference's are at most twice that far from it.
        return -1.0 if self.name == "gaussian" else -4.0 * float(vectors.norm(dim=-1).max())

    def _widths(self, vectors: Tensor) -> Sequence[float]:
        if self.bandwidths:
            return self.bandwidths
        if len(vectors) < 2:
            text = (
                f"expected at least 2 outputs for a bandwidth, but got {len(vectors)}. Add some, or set `@.bandwidths`."
            )
            raise ConfigError(Problem("reference", text))
        median = median_distance(vectors)
        return [median * width for width in WIDTHS]
