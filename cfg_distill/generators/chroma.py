"""The melody of a clip as MusicGen-melody reads it: the strongest pitch class of each window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from transformers.audio_utils import chroma_filter_bank

from cfg_distill.audio import Waveform


@dataclass(frozen=True)
class Chroma:
    """Settings of the pitch classes, by default of facebook/musicgen-melody.

    The numbers equal those of transformers' MusicgenMelodyFeatureExtractor, which needs torchaudio for its spectrogram;
    ``torch.stft`` serves here.

    Args:
        rate: of the sound, in Hz.
        window: samples per window.
        hop: samples between windows.
        num_chroma: pitch classes.
        seconds: a longer clip is cut.
    """

    rate: int = 32000
    window: int = 16384
    hop: int = 4096
    num_chroma: int = 12
    seconds: float = 30.0

    @classmethod
    def of(cls, preprocessor: Mapping[str, Any]) -> Chroma:
        """From the content of a ``preprocessor_config.json``."""
        names = {
            "rate": "sampling_rate",
            "window": "n_fft",
            "hop": "hop_length",
            "num_chroma": "num_chroma",
            "seconds": "chunk_length",
        }
        return cls(**{ours: preprocessor[theirs] for ours, theirs in names.items() if theirs in preprocessor})

    def __call__(self, clip: Waveform) -> Tensor:
        """One-hot pitch classes, ``[S, num_chroma]``; S is one more than the number of hops in the clip.

        Raises:
            ValueError: a clip of another rate.
        """
        if clip.rate != self.rate:
            raise ValueError(f"Expected a clip of {self.rate} Hz but got {clip.rate} Hz.")
        sound_L = clip.mono()[: int(self.seconds * self.rate)]
        if len(sound_L) < self.window:
            lacking = self.window - len(sound_L)
            sound_L = pad(sound_L, (lacking // 2, lacking - lacking // 2))
        window_L = torch.hann_window(self.window)
        power_FS = torch.stft(sound_L, self.window, self.hop, window=window_L, return_complex=True).abs().square()
        filters = chroma_filter_bank(
            sampling_rate=self.rate, num_frequency_bins=self.window, tuning=0, num_chroma=self.num_chroma
        )
        strength_CS = torch.from_numpy(filters).float() @ power_FS
        return one_hot(strength_CS.argmax(0), self.num_chroma).float()
