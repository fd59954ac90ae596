"""Sound as data: a waveform that knows its rate, reading and resampling it, and writing it without ever clipping.

Shapes: C channels, L samples of sound. Reading, resampling and writing need ``pip install ".[audio]"``.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files.vorbis import write_vorbis

AudioForm = Literal["wav", "flac", "ogg"]
PEAK = 0.99
"""The largest magnitude that is written, -0.09 dBFS: below full scale, so that rounding to 16 bits cannot clip."""


@dataclass(frozen=True, eq=False)
class Waveform:
    """A piece of sound: what generators decode, and what embedders, metrics and writers read.

    Attributes:
        samples: ``[C, L]`` float32, on the CPU. Full scale is -1 to 1; a model may exceed it.
        rate: samples per second.
    """

    samples: Tensor
    rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2:
            raise ValueError(f"Expected argument `samples` of shape [C, L] but got {list(self.samples.shape)}.")

    @property
    def seconds(self) -> float:
        """The length."""
        return self.samples.shape[-1] / self.rate

    @property
    def peak(self) -> float:
        """The largest magnitude; 0 without samples."""
        return float(self.samples.abs().max()) if self.samples.numel() else 0.0

    def mono(self) -> Tensor:
        """The mean of the channels, ``[L]``."""
        return self.samples.mean(0)


def silent_share(waveform: Waveform, level: float = -60.0, frame: float = 0.1) -> float:
    """The share of a clip's frames whose root mean square lies below a level; 1 for a clip of no length.

    Args:
        waveform: the clip; the loudest channel decides.
        level: decibels relative to full scale (a constant 1 is 0 dBFS).
        frame: seconds. A shorter rest at the end belongs to no frame, unless it is all there is.

    Example:
        >>> silent_share(Waveform(torch.tensor([[0.5] * 100 + [0.0] * 300]), 1000))
        0.75
    """
    if waveform.samples.shape[-1] == 0:
        return 1.0
    length = min(max(1, round(frame * waveform.rate)), waveform.samples.shape[-1])
    power_CF = waveform.samples.double().square().unfold(-1, length, length).mean(-1)
    return float((power_CF.amax(0) < 10 ** (level / 10)).double().mean())


def problems_of_audio_extra() -> list[Problem]:
    """A problem when the libraries behind reading and writing are missing. It imports none of them."""
    missing = [name for name in ("soundfile", "soxr") if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    text = f'Sound needs {" and ".join(missing)}, which are not installed. Run `pip install ".[audio]"`.'
    return [Problem("", text)]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'Sound needs `{name}`, which is not installed. Run `pip install ".[audio]"`.') from error
    except OSError as error:  # soundfile without its system library
        raise ConfigError(f"Sound needs `{name}`, which cannot be loaded: {error}") from error


def problems_of_file(file: str | Path) -> list[Problem]:
    """Why a file is no sound, as far as its header tells: at most one problem.

    Raises:
        ConfigError: the audio extra is missing.
    """
    soundfile = _library("soundfile")
    if not Path(file).is_file():
        return [Problem("", f"Expected a sound file, but `{file}` does not exist. Check the path.")]
    try:
        soundfile.info(str(file))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return [Problem("", _unreadable(file, error))]
    return []


def seconds_of(file: str | Path) -> float | None:
    """How long a sound file is by its header; None where it cannot be read."""
    if problems_of_audio_extra() or problems_of_file(file):
        return None
    return float(_library("soundfile").info(str(file)).duration)


def _unreadable(file: str | Path, error: Exception) -> str:
    return f"File `{file}`: expected sound (WAV, FLAC, OGG, MP3), but it cannot be read: {error}"


def read_audio(file: str | Path, rate: int | None = None) -> Waveform:
    """A sound file, of any kind that libsndfile reads (WAV, FLAC, OGG, MP3, ...).

    Args:
        file: where it is.
        rate: resample to it; None: as it is in the file.

    Raises:
        ConfigError: the audio extra or the file is missing, or the file is no sound.
    """
    if found := problems_of_file(file):
        raise ConfigError(found)
    soundfile = _library("soundfile")
    try:
        samples_LC, its_rate = soundfile.read(str(file), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ConfigError(_unreadable(file, error)) from error
    waveform = Waveform(torch.from_numpy(samples_LC.T.copy()), its_rate)
    return waveform if rate is None else resampled(waveform, rate)


def resampled(waveform: Waveform, rate: int) -> Waveform:
    """The same sound at another rate, by soxr in high quality, all channels in phase; unchanged when the rate fits.

    Raises:
        ConfigError: the audio extra is missing.
    """
    if waveform.rate == rate:
        return waveform
    samples_LC = waveform.samples.detach().cpu().float().T.contiguous().numpy()
    resampled_LC = _library("soxr").resample(samples_LC, waveform.rate, rate, quality="HQ")
    return Waveform(torch.from_numpy(resampled_LC.T.copy()), rate)


def within_full_scale(waveform: Waveform) -> tuple[Waveform, float]:
    """The waveform with its peak at most :data:`PEAK`, and the gain in decibels that was applied, 0 for none.

    One gain serves the whole clip and all channels: a limiter would distort, and a gain per channel would move the stereo
    image. Quiet clips stay as they are, since loudness is a property of the model and silence must stay visible.

    Example:
        >>> scaled, gain = within_full_scale(Waveform(torch.tensor([[0.5, -1.98]]), 8000))
        >>> scaled.samples, round(gain, 2)
        (tensor([[ 0.2500, -0.9900]]), -6.02)
    """
    peak = waveform.peak
    if not math.isfinite(peak):
        raise ConfigError(
            "Sound: expected finite samples, but got NaN or infinity: the model diverged. Use an earlier checkpoint of it, or"
            " train it again at a lower learning rate."
        )
    if peak <= PEAK:
        return waveform, 0.0
    return Waveform(waveform.samples * (PEAK / peak), waveform.rate), 20 * math.log10(PEAK / peak)


def write_audio(file: str | Path, waveform: Waveform) -> float:
    """Write a 16-bit WAV file, whole or not at all, after :func:`within_full_scale`; a file of the name is replaced.

    Returns:
        The applied gain in decibels; 0 when the clip fits as it is.

    Raises:
        ConfigError: the audio extra is missing, or samples are not finite.
    """
    soundfile = _library("soundfile")
    scaled, gain = within_full_scale(waveform)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    samples_LC = scaled.samples.detach().cpu().float().T.contiguous().numpy()
    soundfile.write(str(staged), samples_LC, waveform.rate, subtype="PCM_16", format="WAV")
    staged.replace(file)
    return gain


def compressed(wav: Path, form: AudioForm) -> Path:
    """A WAV file as FLAC, which loses nothing, or Ogg Vorbis, in its place.

    Returns:
        The new file; the WAV file itself where it is to stay, where it has no sound (of which no FLAC can be read again), or
        where the audio extra is missing.
    """
    if form == "wav" or problems_of_audio_extra():
        return wav
    soundfile = _library("soundfile")
    file = wav.with_suffix(f".{form}")
    samples_LC, rate = soundfile.read(str(wav), dtype="int16", always_2d=True)
    if not len(samples_LC):
        return wav
    if form == "ogg":
        write_vorbis(soundfile, str(file), samples_LC, rate)
    else:
        soundfile.write(str(file), samples_LC, rate, format="FLAC", subtype="PCM_16")
    wav.unlink()
    return file
