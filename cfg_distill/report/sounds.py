"""The written samples of a study: found again, and their sound as small files for a page."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cfg_distill.files import read_exactly, staged_folder
from cfg_distill.files.vorbis import write_vorbis

SUFFIXES = (".flac", ".wav", ".ogg")
"""Of written sound."""
SECONDS = 20.0
"""The longest clip on the page; the files of the study hold the whole sample."""
_FADE = 0.5
_COMPRESSION = 0.9
"""Of Ogg Vorbis: about 2 kB per second of mono sound at 22 kHz."""
_STEM = re.compile(r"(?P<place>\d+)-.*-(?P<number>\d+)")
_TYPES = {".ogg": "audio/ogg", ".wav": "audio/wav"}


@dataclass
class Sample:
    """One written sample.

    Attributes:
        prompt: the place of its prompt, from 0 on.
        number: among the samples of the prompt, from 1 on.
        text: to be read: the score of a tune, or the sample itself; empty for sound alone.
        kind: of the text: ``score`` or ``text``.
        sound: its sound file in the study; None for text.
        source: what an audio element loads; empty for text, or where the sound could not be read.
        seconds: of the clip.
    """

    prompt: int
    number: int
    text: str
    kind: str
    sound: Path | None
    source: str = ""
    seconds: float = 0.0


def samples_of(folder: Path, prompts: Sequence[str]) -> list[Sample]:
    """The written samples of a system, by prompt and number.

    Args:
        folder: where they were written.
        prompts: those whose samples are wanted: the first ones of the system.
    """
    found = []
    for file in sorted(folder.glob("*.txt")):
        match = _STEM.fullmatch(file.stem)
        if match is None or not 0 < int(match["place"]) <= len(prompts):
            continue
        place = int(match["place"]) - 1
        content = read_exactly(file).removeprefix(f"{prompts[place]}\n\n").rstrip("\n")
        sound = next((path for suffix in SUFFIXES if (path := file.with_suffix(suffix)).is_file()), None)
        score = file.with_suffix(".abc")
        if score.is_file():
            content = score.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        elif sound is not None and content == sound.name:
            content = ""
        kind = "score" if score.is_file() else "text"
        found.append(Sample(place, int(match["number"]), content, kind, sound))
    return sorted(found, key=lambda sample: (sample.prompt, sample.number))


def with_sound(samples: dict[str, list[Sample]], folder: Path, inline: bool) -> list[str]:
    """Give every sample of sound its source: a small file, or the sound itself as a data URL.

    A clip is Ogg Vorbis where the audio extra is installed, else WAV, and at most :data:`SECONDS` long. Clips that are
    newer than their samples are kept.

    Args:
        samples: the name of a system's files -> its samples; their ``source`` and ``seconds`` are set.
        folder: for the files, beside the page; it appears whole, and is removed where there is no sound.
        inline: put the sound into the page.

    Returns:
        The samples whose sound cannot be read, as sentences.
    """
    jobs = [(name, sample) for name, group in samples.items() for sample in group if sample.sound is not None]
    suffix = ".wav" if soundfile_library() is None else ".ogg"

    def encode(job: tuple[str, Sample]) -> tuple[bytes, float] | None:
        name, sample = job
        assert sample.sound is not None
        before = folder / _file_name(name, sample, suffix)
        try:
            if not inline and before.is_file() and before.stat().st_mtime > sample.sound.stat().st_mtime:
                return before.read_bytes(), min(_length(sample.sound), SECONDS)
            return clip(sample.sound)
        except (OSError, RuntimeError, ValueError, EOFError, wave.Error):  # soundfile's own errors are RuntimeErrors
            return None

    with ThreadPoolExecutor(2) as pool:  # the encoder lets other threads run
        encoded = list(pool.map(encode, jobs))
    broken = [f"{job[1].sound} cannot be read." for job, clip in zip(jobs, encoded, strict=True) if clip is None]
    made = [(job, clip) for job, clip in zip(jobs, encoded, strict=True) if clip is not None]
    for (name, sample), (content, seconds) in made:
        sample.seconds = seconds
        file = f"{folder.name}/{_file_name(name, sample, suffix)}"
        sample.source = data_url(content, suffix) if inline else quote(file)
    if inline or not made:
        shutil.rmtree(folder, ignore_errors=True)
        return broken
    with staged_folder(folder) as staged:
        for (name, sample), (content, _) in made:
            (staged / _file_name(name, sample, suffix)).write_bytes(content)
    return broken


def with_whole_sound(samples: Sequence[Sample]) -> None:
    """Give every sample of sound its source: the whole sound as a data URL, and so a page needs no file beside it.

    Raises:
        OSError, RuntimeError, ValueError: a sound cannot be read.
    """
    for sample in samples:
        if sample.sound is not None:
            content, sample.seconds = clip(sample.sound, longest=math.inf)
            sample.source = data_url(content, ".wav" if soundfile_library() is None else ".ogg")


def data_url(content: bytes, suffix: str) -> str:
    """A sound as the address of itself."""
    return f"data:{_TYPES[suffix]};base64,{base64.b64encode(content).decode()}"


def clip(file: Path, longest: float = SECONDS) -> tuple[bytes, float]:
    """The beginning of a sound file as a small one, and its seconds.

    Args:
        file: the sound.
        longest: seconds.

    Raises:
        OSError, RuntimeError, ValueError: it cannot be read.
    """
    soundfile = soundfile_library()
    if soundfile is None:
        return file.read_bytes(), _length(file)
    samples_LC, rate = soundfile.read(str(file), dtype="float32", always_2d=True)
    if len(samples_LC) > longest * rate:
        fade = int(_FADE * rate)
        samples_LC = samples_LC[: int(longest * rate)]
        samples_LC[-fade:] *= 1 - _ramp(fade)[:, None]
    content = io.BytesIO()
    write_vorbis(soundfile, content, samples_LC, rate, **_compression(soundfile))
    return content.getvalue(), len(samples_LC) / rate


def _ramp(length: int) -> Any:
    import numpy as np

    return np.arange(length, dtype=np.float32) / length


def _compression(soundfile: Any) -> dict[str, float]:
    """The setting of the encoder, which soundfile takes since 0.13."""
    older = tuple(map(int, soundfile.__version__.split(".")[:2])) < (0, 13)
    return {} if older else {"compression_level": _COMPRESSION}


def _length(file: Path) -> float:
    """The seconds of a sound file."""
    soundfile = soundfile_library()
    if soundfile is not None:
        return float(soundfile.info(str(file)).duration)
    with wave.open(str(file)) as stream:
        return stream.getnframes() / stream.getframerate()


def soundfile_library() -> Any:
    """The library of the audio extra; None where it is not installed."""
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package is there, and its library is not
        return None
    return soundfile


def _file_name(stem: str, sample: Sample, suffix: str) -> str:
    return f"{stem}-{sample.prompt + 1:02d}-{sample.number}{suffix}"
