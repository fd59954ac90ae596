"""Metrics of sound: adherence, and the guards against silence, clipping and loops.

Shapes: B prompts, G samples per prompt, C channels, L samples of sound, M windows.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from cfg_distill.audio import Waveform, silent_share
from cfg_distill.embedders import CLAP
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_positive
from cfg_distill.metrics.base import SampleMetric
from cfg_distill.metrics.embedding import PromptAdherence
from cfg_distill.sampling.samples import Samples


def clipped_share(waveform: Waveform, level: float = 0.999) -> float:
    """The share of a clip's samples at or beyond full scale; 0 for a clip of no length.

    Example:
        >>> clipped_share(Waveform(torch.tensor([[0.5, -1.0, 1.3, 0.9]]), 1000))
        0.5
    """
    samples = waveform.samples
    return float((samples.abs() >= level).double().mean()) if samples.numel() else 0.0


def combined(spectra: Tensor) -> Tensor:
    """The magnitudes of all channels as one: the root of the sum of their powers, over the first dimension.

    Mixed down before, two channels of opposite sign would be silence; side by side, swapped channels would be another sound.
    """
    return spectra.square().sum(0).sqrt()


def repeated_share(
    waveform: Waveform, window: float = 0.5, hop: float = 0.02, similarity: float = 0.995, level: float = -60.0
) -> float:
    """The share of a clip's windows that sound like an earlier one which they do not overlap; 0 for a short clip.

    Two windows are alike when their magnitude spectrograms have a cosine of at least ``similarity``, so that a loop is
    found whatever its phase, and a held tone counts too. Silent windows belong to :func:`silent_share` and are left
    out. Music repeats itself: compare the number with the teacher's, not with 0.

    Args:
        waveform: the clip; the power of its channels is added.
        window: seconds that are compared.
        hop: seconds between windows: the smallest difference of a loop's length that is seen. 0.02 is a frame of EnCodec
            at 50 per second, so a loop of tokens is met exactly.
        similarity: the cosine from which two windows are alike.
        level: decibels relative to full scale below which a window is silent.
    """
    samples_CL = waveform.samples
    step = max(1, round(hop * waveform.rate))
    frames = max(1, round(window / hop))
    if samples_CL.shape[-1] < 2 * frames * step:
        return 0.0
    # A spectrum a hop, with no padding at the ends; the transform is two hops long.
    shape = torch.hann_window(2 * step, device=samples_CL.device)
    spectrum_CFH = torch.stft(samples_CL, 2 * step, step, window=shape, center=False, return_complex=True).abs()
    spectrum_HF = combined(spectrum_CFH).T
    with torch.autocast(samples_CL.device.type, enabled=False):  # it would compare in half precision
        gram_HH = spectrum_HF @ spectrum_HF.T
    count = len(gram_HH) - frames + 1
    # The inner product of two windows is the sum along a diagonal of the frames' own: no window is ever copied.
    dot_MM = torch.stack([gram_HH[k : k + count, k : k + count] for k in range(frames)]).sum(0)
    power_M = dot_MM.diagonal()
    audible_M = power_M / (frames * spectrum_HF.shape[1]) > 10 ** (level / 10) * shape.square().sum()
    cosine_MM = dot_MM / (power_M[:, None] * power_M).sqrt().clamp(min=torch.finfo(dot_MM.dtype).tiny)
    # Only windows that lie earlier by a whole window, and are heard.
    alike_MM = (cosine_MM >= similarity).tril(-frames) & audible_M
    heard = int(audible_M[frames:].sum())
    return int((alike_MM.any(-1) & audible_M).sum()) / heard if heard else 0.0


def refuse_other_than_sound(metric: SampleMetric, samples: Samples) -> None:
    """Raises ConfigError: a sample is no sound, which the metric needs."""
    if wrong := [output for output in samples.outputs if not isinstance(output, Waveform)]:
        raise ConfigError(
            f"Metric `{type(metric).__name__}`: expected sound, but the model writes a {type(wrong[0]).__name__}. Take it out"
            " of the metrics, or use an audio model."
        )


class WaveformMetric(SampleMetric):
    """A guard that scores one clip at a time: override :meth:`score_clip`. The value of a prompt is the mean."""

    axis = "guard"
    higher_is_better = False

    @abstractmethod
    def score_clip(self, clip: Waveform) -> float:
        """The value of one clip."""

    def score(self, samples: Samples) -> Tensor:
        refuse_other_than_sound(self, samples)
        return torch.tensor([[self.score_clip(clip) for clip in group] for group in samples.groups()]).mean(-1)


class SilenceRate(WaveformMetric):
    """The share of silent frames, averaged over a prompt's samples; see :func:`silent_share`.

    Args:
        level: decibels relative to full scale below which a frame is silent.
        frame: its seconds.
    """

    def __init__(self, level: float = -60.0, frame: float = 0.1, **settings: Any) -> None:
        super().__init__(**settings)
        self.level = level
        self.frame = frame

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = [] if self.level < 0 else [Problem("level", f"expected decibels below 0, but got {self.level}.")]
        return found + problems_of_positive(frame=self.frame)

    def score_clip(self, clip: Waveform) -> float:
        return silent_share(clip, self.level, self.frame)


class ClippingRate(WaveformMetric):
    """The share of samples of sound at or beyond full scale, averaged over clips; see :func:`clipped_share`.

    Args:
        level: the magnitude that counts as full scale.
    """

    def __init__(self, level: float = 0.999, **settings: Any) -> None:
        super().__init__(**settings)
        self.level = level

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of_positive(level=self.level)

    def score_clip(self, clip: Waveform) -> float:
        return clipped_share(clip, self.level)


class AudioRepetition(WaveformMetric):
    """The share of windows that repeat an earlier one, averaged over a prompt's samples; see :func:`repeated_share`.

    Args:
        window: seconds that are compared.
        hop: seconds between windows.
        similarity: the cosine of two magnitude spectrograms from which they are alike.
    """

    def __init__(self, window: float = 0.5, hop: float = 0.02, similarity: float = 0.995, **settings: Any) -> None:
        super().__init__(**settings)
        self.window = window
        self.hop = hop
        self.similarity = similarity

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = problems_of_positive(window=self.window, hop=self.hop)
        if not found and self.hop > self.window:
            found.append(Problem("hop", f"expected at most `@.window`, {self.window}, but got {self.hop}."))
        if not 0 < self.similarity <= 1:
            found.append(Problem("similarity", f"expected a number in (0, 1], but got {self.similarity}."))
        return found

    def score_clip(self, clip: Waveform) -> float:
        return repeated_share(clip, self.window, self.hop, self.similarity)


class CLAPAdherence(PromptAdherence):
    """Mean cosine of a prompt's clips with the prompt, under CLAP, which reads both.

    Args:
        embedder: the CLAP model. As the reward's it shows what was trained; report another one's too.
    """

    def __init__(self, embedder: CLAP, **settings: Any) -> None:
        super().__init__(embedder, **settings)
