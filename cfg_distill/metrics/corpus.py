"""Distances between all samples of a model and real sound: FAD and KAD, with an interval over prompts.

Shapes: P prompts, G samples per prompt, N and R vectors of two sets, D embedding width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cfg_distill.embedders import Embedder
from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.metrics.base import EmbeddingMetric
from cfg_distill.references import Sounds, mean_kernel_within, median_distance
from cfg_distill.references.kernels import gaussian_kernel, rows_at_once
from cfg_distill.sampling.samples import Samples


class _AsTheyAre(nn.Module):
    """The feature network of a distance between vectors: none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors


def frechet_distance(vectors: Tensor, reference: Tensor) -> Tensor:
    r"""Squared Frechet distance between the normal distributions fitted to two sets, by torchmetrics, in float64.

    .. math:: \lVert \mu_1 - \mu_2 \rVert^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

    Biased upwards in small sets, the more the wider the vectors: compare at equal numbers of samples only.
    Source: Kilgour et al., arXiv 1812.08466.

    Args:
        vectors: ``[N, D]``, N at least 2.
        reference: ``[R, D]``, R at least 2.

    Returns:
        A float64 scalar.
    """
    # All processes call this with the same vectors: it must not gather them once more.
    metric = FrechetInceptionDistance(feature=_AsTheyAre(vectors.shape[-1]), sync_on_compute=False).to(vectors.device)
    metric.set_dtype(torch.float64)
    metric.update(reference.double(), real=True)
    metric.update(vectors.double(), real=False)
    return metric.compute()


def kernel_distance(
    vectors: Tensor, reference: Tensor, bandwidth: float | None = None, within: Tensor | None = None
) -> Tensor:
    r"""Unbiased squared maximum mean discrepancy under a Gaussian kernel, in float64; it may fall below 0.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{N (N-1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{R (R-1)}
        - \frac{2 \sum_{ij} k(x_i, y_j)}{N R}, \qquad k(a, b) = e^{-\lVert a - b \rVert^2 / (2 \sigma^2)}

    Computed in blocks: memory grows with N + R, not with R x R. Source: Chung et al., arXiv 2502.15602; Gretton et al., JMLR
    2012, Eq. 3.

    Args:
        vectors: ``[N, D]``, N at least 2.
        reference: ``[R, D]``, R at least 2.
        bandwidth: sigma; None takes :func:`median_distance`, as the paper does.
        within: the reference's own term, by :func:`mean_kernel_within` under the same sigma, where it is known.

    Returns:
        A float64 scalar.
    """
    sigma = median_distance(reference) if bandwidth is None else bandwidth
    within = mean_kernel_within(reference, sigma) if within is None else within
    x_ND, y_RD = vectors.double(), reference.double()
    between = sum(gaussian_kernel(part_ND, y_RD, sigma).sum() for part_ND in x_ND.split(rows_at_once(y_RD)))
    return mean_kernel_within(x_ND, sigma) + within - 2 * between / (len(x_ND) * len(y_RD))


def jackknife(groups: Tensor, reference: Tensor, statistic: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    r"""A statistic of all samples as one number per prompt: their mean is the statistic, their spread its uncertainty.

    .. math:: v_p = \theta + (P - 1) \Big(\frac{1}{P} \sum_q \theta_{-q} - \theta_{-p}\Big)

    where theta is the statistic of all samples and theta_-p that without prompt p's. The variance of the mean of these
    values is the jackknife's variance of theta, so a bootstrap over prompts gives theta an interval like that of any
    mean. They are Tukey's pseudo-values, moved so that their mean is theta itself. Source: Efron and Tibshirani, 1993,
    section 11.5.

    Args:
        groups: ``[P, G, D]``.
        reference: ``[R, D]``.
        statistic: from ``[N, D]`` and the reference to a scalar; needs N of at least 2.

    Returns:
        ``[P]`` float32: all NaN for one sample in all, all theta where too few remain without a prompt.
    """
    prompts, group, _ = groups.shape
    if prompts * group < 2:
        return torch.full((prompts,), torch.nan)
    whole = statistic(groups.flatten(0, 1), reference)
    if (prompts - 1) * group < 2:
        return whole.float().expand(prompts)
    kept = ~torch.eye(prompts, dtype=torch.bool, device=groups.device)
    without_P = torch.stack([statistic(groups[kept_P].flatten(0, 1), reference) for kept_P in kept])
    return (whole + (prompts - 1) * (without_P.mean() - without_P)).float()


class CorpusMetric(EmbeddingMetric):
    """A distance between all samples and a folder of real sound, which has no value per prompt of its own.

    It keeps the vectors and gives each prompt its jackknife value (:func:`jackknife`), so that intervals and paired
    comparisons work as for any other metric; :meth:`compute` is the distance itself. A guard: lower is better, and it
    belongs on neither axis, since variety and fidelity both move it. Embedders give vectors of unit length, so the numbers are
    not comparable with publications, which take vectors as they are.

    Args:
        embedder: the frozen model whose space is measured in; not the reward's embedder alone.
        reference: a folder of sound files (WAV, FLAC, OGG, MP3, AIFF), subfolders included.
        seconds: reference files are cut into clips of this length, which should be the samples' length; a rest shorter than
            half of it is left out.
    """

    axis = "guard"
    higher_is_better = False
    group: Tensor

    def __init__(self, embedder: Embedder, reference: str, seconds: float = 10.0, **settings: Any) -> None:
        super().__init__(embedder, **settings)
        self.reference = reference
        self.seconds = seconds
        self._sounds = Sounds(reference, seconds)
        self._reference_RD: Tensor | None = None
        self.add_state("group", default=torch.tensor(0), dist_reduce_fx="max")

    @abstractmethod
    def statistic(self, vectors: Tensor, reference: Tensor) -> Tensor:
        """The distance of ``[N, D]`` from ``[R, D]``, a scalar."""

    def problems(self, context: Context = Context()) -> list[Problem]:
        own = [
            replace(each, key="reference") if each.key == "folder" else each for each in self._sounds.problems(context)
        ]
        return super().problems(context) + own

    def load(self) -> Self:
        super().load()
        if self._reference_RD is None:
            vectors_RD = self._sounds.vectors(self._frozen.on(self.device))
            if len(vectors_RD) < 2:
                raise ConfigError(
                    f"Metric `{type(self).__name__}`: expected at least two clips of {self.seconds:g} s in"
                    f" `{self.reference}`, but it holds {len(vectors_RD)}. Add files, or lower `seconds`."
                )
            self._reference_RD = vectors_RD
        return self

    def update(self, samples: Samples) -> None:
        # Flat, since a process without a prompt has nothing to tell the shape from.
        self.values.append(self._heard(samples).float().flatten())  # type: ignore[union-attr]
        self.group = self.group.clamp(min=samples.group)

    def score(self, samples: Samples) -> Tensor:
        return jackknife(self._heard(samples), self._clips(), self.statistic)

    def per_prompt(self) -> Tensor:
        return jackknife(self._groups(), self._clips(), self.statistic)

    def compute(self) -> Tensor:
        """The distance of all samples (of all processes) from the reference; NaN for fewer than two."""
        vectors_ND = self._groups().flatten(0, 1)
        return self.statistic(vectors_ND, self._clips()).float() if len(vectors_ND) > 1 else torch.tensor(torch.nan)

    def _heard(self, samples: Samples) -> Tensor:
        """The vectors of all samples, ``[B, G, D]``, silent ones included: silence is far from real sound, and must count."""
        vectors_ND = self._frozen.on(self.device).embed(samples.outputs)
        return vectors_ND.unflatten(0, (len(samples.prompts), samples.group))

    def _groups(self) -> Tensor:
        """The vectors so far, ``[P, G, D]``; the samples of a prompt must be as many for all."""
        return super().per_prompt().view(-1, int(self.group), self._clips().shape[-1])

    def _clips(self) -> Tensor:
        assert self._reference_RD is not None
        return self._reference_RD.to(self.device)


class FAD(CorpusMetric):
    """Frechet audio distance to a folder of real sound; see :func:`frechet_distance`.

    Arguments: :class:`CorpusMetric`.
    """

    def statistic(self, vectors: Tensor, reference: Tensor) -> Tensor:
        return frechet_distance(vectors, reference)


class KAD(CorpusMetric):
    """Kernel audio distance to a folder of real sound, times 100 as its paper reports it; see :func:`kernel_distance`.

    Arguments: :class:`CorpusMetric`.
    """

    _of_reference: tuple[float, Tensor] | None = None

    def statistic(self, vectors: Tensor, reference: Tensor) -> Tensor:
        if self._of_reference is None:  # the same for every system and every prompt that the jackknife leaves out
            bandwidth = median_distance(reference)
            self._of_reference = bandwidth, mean_kernel_within(reference, bandwidth)
        bandwidth, within = self._of_reference
        return 100 * kernel_distance(vectors, reference, bandwidth, within.to(vectors.device))
