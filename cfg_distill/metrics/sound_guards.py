"""Two guards of sound that the ladder asked for: noise, and clips that are copies of a sibling.

Shapes: C channels, L samples of sound, F frames, N samples, H frequencies.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from cfg_distill.audio import Waveform
from cfg_distill.metrics.audio import WaveformMetric, combined, refuse_other_than_sound
from cfg_distill.metrics.base import SampleMetric
from cfg_distill.sampling.samples import Samples

_FRAME = 1024
_AUDIBLE = 10 ** (-60 / 10) * 0.375 * _FRAME
"""The mean power of a spectrum at -60 decibels of full scale: the squares of a Hann window sum to 3/8 of its length."""
_SAME = 0.995


def flatness(waveform: Waveform) -> float:
    r"""Spectral flatness: the geometric over the arithmetic mean of the power spectrum, averaged over frames that sound.

    .. math:: \exp\Big(\frac{1}{H} \sum_h \log P_h\Big) \Big/ \frac{1}{H} \sum_h P_h

    About 0.56 for white noise (the ratio for independent exponential powers is e to the minus Euler's constant), near 0 for
    tones and music; 0 for silence and for clips shorter than a frame of 1,024 samples. Source: Gray and Markel, IEEE
    Transactions on Acoustics, Speech and Signal Processing 22, 1974.

    Args:
        waveform: the clip; the loudest channel decides.
    """
    power_CFH = _spectra(waveform).square()
    power_FH = power_CFH[power_CFH.sum((-2, -1)).argmax()]
    power_FH = power_FH[power_FH.mean(-1) > _AUDIBLE]
    if not len(power_FH):
        return 0.0
    return float((power_FH.clamp(min=1e-20).log().mean(-1).exp() / power_FH.mean(-1)).mean())


class Noise(WaveformMetric):
    """How far the sound is noise, from 0 to about 0.56, averaged over a prompt's samples; see :func:`flatness`.

    Cymbals and breath are noise, too: compare the number with the teacher's.
    """

    def score_clip(self, clip: Waveform) -> float:
        return flatness(clip)


def is_copy(one: Waveform, other: Waveform, similarity: float = _SAME) -> bool:
    """Whether two clips are one recording: their magnitude spectrograms have a cosine of at least ``similarity``.

    The volume does not matter, nor a shift by a few samples, nor which channel a sound is in. Of two lengths the longer clip is
    cut to the shorter, which must be at least half as long.
    """
    a_FH, b_FH = (combined(_spectra(clip)) for clip in (one, other))
    frames = min(len(a_FH), len(b_FH))
    a_FH, b_FH, cut = a_FH[:frames], b_FH[:frames], frames / max(len(a_FH), len(b_FH), 1)
    if one.rate != other.rate or cut < 0.5 or not a_FH.any() or not b_FH.any():
        return False
    return float(torch.nn.functional.cosine_similarity(a_FH.flatten(), b_FH.flatten(), dim=0)) >= similarity


class SiblingCopies(SampleMetric):
    """The share of pairs of a prompt's samples that are one recording; NaN for a group of one; see :func:`is_copy`.

    Silent clips belong to :class:`cfg_distill.metrics.SilenceRate`, and are no copies.
    """

    axis = "guard"
    higher_is_better = False

    def score(self, samples: Samples) -> Tensor:
        refuse_other_than_sound(self, samples)
        pairs = [[float(is_copy(*pair)) for pair in combinations(group, 2)] for group in samples.groups()]
        return torch.tensor([sum(found) / len(found) if found else torch.nan for found in pairs])


def _spectra(waveform: Waveform) -> Tensor:
    """Magnitudes of the frames of each channel, ``[C, F, H]``, without the constant part."""
    samples_CL = waveform.samples.float()
    if samples_CL.shape[-1] < _FRAME:
        return torch.zeros(len(samples_CL), 0, _FRAME // 2)
    window = torch.hann_window(_FRAME, device=samples_CL.device)
    spectra_CHF = torch.stft(samples_CL, _FRAME, _FRAME // 2, window=window, center=False, return_complex=True).abs()
    return spectra_CHF.mT[..., 1:]
