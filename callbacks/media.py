"""Text, sound and figures for any logger of Lightning: each kind of logger is one small class that knows its calls.

    TensorBoard, and what has its writer's methods    add_text, add_audio, add_figure, add_histogram of ``logger.experiment``
    Weights & Biases                                  log_text, log_audio, log_image of the logger
    MLflow                                            log_text, log_artifact, log_figure of its client, under the run's id
    a logger with a folder, such as CSVLogger         files in ``media/`` of that folder
    any other                                         nothing; said once

The calls are asked for, not the classes: none of these libraries need be installed.
"""

from __future__ import annotations

import re
import tempfile
import wave
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor

from cfg_distill.audio import Waveform


@runtime_checkable
class _Writes(Protocol):
    add_text: Callable[..., Any]


@runtime_checkable
class _Logs(Protocol):
    log_text: Callable[..., Any]
    log_image: Callable[..., Any]


@runtime_checkable
class _Client(Protocol):
    log_text: Callable[..., Any]
    log_artifact: Callable[..., Any]


@runtime_checkable
class _Run(Protocol):
    run_id: str


class Sink(ABC):
    """Where media of one logger go. A call that the logger lacks, or that fails, is said once and skipped."""

    said: ClassVar[set[tuple[str, str]]] = set()

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def text(self, tag: str, text: str, step: int) -> None:
        """Log a text, in markdown."""
        self._try("text", partial(self._text, tag, text, step))

    def sound(self, tag: str, sound: Waveform, step: int) -> None:
        """Log one channel of sound within full scale."""
        self._try("sound", partial(self._sound, tag, sound, step))

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Log a picture."""
        self._try("figures", partial(self._figure, tag, figure, step))

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Log how values are distributed: as a picture, where the logger has no histograms of its own."""
        self._try("histograms", partial(self._histogram, tag, values, step))

    @abstractmethod
    def _text(self, tag: str, text: str, step: int) -> None: ...

    @abstractmethod
    def _sound(self, tag: str, sound: Waveform, step: int) -> None: ...

    @abstractmethod
    def _figure(self, tag: str, figure: Figure, step: int) -> None: ...

    def _histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._figure(tag, _picture(values), step)

    def _try(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a foreign library: a picture less is no reason to end a run
            self._say(what, f": {type(error).__name__}: {error}")

    def _say(self, what: str, why: str) -> None:
        name = type(self.logger).__name__
        if (name, what) not in self.said:
            self.said.add((name, what))
            rank_zero_warn(f"{name} takes no {what} of samples{why}. The run goes on without. This is said once.")


class _Nowhere(Sink):
    """A logger of numbers alone."""

    def _text(self, tag: str, text: str, step: int) -> None:
        self._say("text, sound or figures", "")

    def _sound(self, tag: str, sound: Waveform, step: int) -> None:
        self._say("text, sound or figures", "")

    def _figure(self, tag: str, figure: Figure, step: int) -> None:
        self._say("text, sound or figures", "")


class _Writer(Sink):
    """TensorBoard's SummaryWriter, or what has its methods."""

    def _text(self, tag: str, text: str, step: int) -> None:
        self.logger.experiment.add_text(tag, text, global_step=step)

    def _sound(self, tag: str, sound: Waveform, step: int) -> None:
        self.logger.experiment.add_audio(tag, sound.samples, global_step=step, sample_rate=sound.rate)

    def _figure(self, tag: str, figure: Figure, step: int) -> None:
        self.logger.experiment.add_figure(tag, figure, global_step=step, close=False)

    def _histogram(self, tag: str, values: Tensor, step: int) -> None:
        self.logger.experiment.add_histogram(tag, values, global_step=step)


class _WandbLike(Sink):
    """Weights & Biases: Lightning's logger has a call for each kind."""

    def _text(self, tag: str, text: str, step: int) -> None:
        self.logger.log_text(tag, columns=["step", "text"], data=[[step, text]])

    def _sound(self, tag: str, sound: Waveform, step: int) -> None:
        self.logger.log_audio(tag, [sound.samples[0].numpy()], sample_rate=[sound.rate])

    def _figure(self, tag: str, figure: Figure, step: int) -> None:
        self.logger.log_image(tag, [figure])


class _MLflowLike(Sink):
    """MLflow: artifacts of the run, one per step."""

    def _text(self, tag: str, text: str, step: int) -> None:
        self.logger.experiment.log_text(self.logger.run_id, text, f"{_path(tag, step)}.md")

    def _sound(self, tag: str, sound: Waveform, step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{Path(_path(tag, step)).name}.wav"
            _write_wav(file, sound)
            self.logger.experiment.log_artifact(self.logger.run_id, str(file), str(Path(_path(tag, step)).parent))

    def _figure(self, tag: str, figure: Figure, step: int) -> None:
        self.logger.experiment.log_figure(self.logger.run_id, figure, f"{_path(tag, step)}.png")


class _Files(Sink):
    """Files beside the numbers of a logger with a folder."""

    def _text(self, tag: str, text: str, step: int) -> None:
        self._file(tag, step, "md").write_text(text + "\n", encoding="utf-8")

    def _sound(self, tag: str, sound: Waveform, step: int) -> None:
        _write_wav(self._file(tag, step, "wav"), sound)

    def _figure(self, tag: str, figure: Figure, step: int) -> None:
        figure.savefig(self._file(tag, step, "png"))

    def _file(self, tag: str, step: int, ending: str) -> Path:
        folder = cast(str | None, self.logger.log_dir) or self.logger.save_dir
        file = Path(folder) / "media" / f"{_path(tag, step)}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


def _picture(values: Tensor) -> Figure:
    """A histogram."""
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(values.flatten().tolist(), bins=20, color="#0072B2")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _write_wav(file: Path, sound: Waveform) -> None:
    """16 bits, by the standard library: the audio extra need not be installed."""
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(sound.rate)
        stream.writeframes((sound.samples[0].clamp(-1, 1) * 32767).round().short().numpy().tobytes())


def _path(tag: str, step: int) -> str:
    """A relative path of a tag at a step."""
    return f"{re.sub(r'[^A-Za-z0-9/_.-]+', '-', tag)}-step{step}"


def sinks(trainer: Trainer) -> list[Sink]:
    """Where media go: one per logger of the trainer. Ask on rank 0 only."""
    return [_sink(logger) for logger in trainer.loggers]


def _sink(logger: Logger) -> Sink:
    if isinstance(logger, _Logs):
        return _WandbLike(logger)
    behind = _experiment(logger)
    if isinstance(behind, _Writes):
        return _Writer(logger)
    if isinstance(behind, _Client) and isinstance(logger, _Run):
        return _MLflowLike(logger)
    return _Files(logger) if logger.log_dir or logger.save_dir else _Nowhere(logger)


def _experiment(logger: Any) -> Any:
    """What lies behind a logger; None where it has nothing, or its library fails."""
    try:
        return logger.experiment
    except Exception:  # a foreign library without a network, or without the method
        return None
