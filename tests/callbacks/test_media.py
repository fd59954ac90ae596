"""Samples and figures under every kind of logger: each gets what it takes, none ends a run, what it lacks is said once."""

from __future__ import annotations

import warnings
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from tiny import tiny_folder
from tiny_fits import DistinctFirst, MeanLength, batches, student_of, trainer

from cfg_distill.audio import Waveform
from cfg_distill.callbacks import DiversityLogging, SampleLogging
from cfg_distill.callbacks.media import Sink, sinks

SOUND = Waveform(torch.linspace(-1, 1, 80)[None], 8000)


class Numbers(Logger):
    """A logger of numbers alone."""

    name, version, experiment = "numbers", 0, None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        pass


class WandbLike(Numbers):
    """With the calls of Lightning's WandbLogger, and their signatures."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def log_text(
        self, key: str, columns: list[str] | None = None, data: Any = None, dataframe: Any = None, step: Any = None
    ):
        self.calls.append(("text", key, columns, data))

    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        assert all(len(values) == len(audios) for values in kwargs.values())
        self.calls.append(("audio", key, audios[0].shape, kwargs["sample_rate"]))

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append(("image", key, type(images[0])))


class MLflowLike(Numbers):
    """With a client whose calls take the id of the run, as MlflowClient's do."""

    run_id = "run-7"

    def __init__(self) -> None:
        super().__init__()
        self.artifacts: dict[str, Any] = {}
        self.experiment = SimpleNamespace(log_text=self._text, log_artifact=self._artifact, log_figure=self._text)

    def _text(self, run_id: str, content: Any, artifact_file: str) -> None:
        assert run_id == self.run_id
        self.artifacts[artifact_file] = content

    def _artifact(self, run_id: str, local_path: str, artifact_path: str) -> None:
        assert run_id == self.run_id
        self.artifacts[f"{artifact_path}/{Path(local_path).name}"] = Path(local_path).read_bytes()


class Broken(WandbLike):
    """Its service is not reached."""

    def log_text(self, *arguments: Any, **settings: Any) -> None:
        raise ConnectionError("no service")


@pytest.fixture(autouse=True)
def unsaid() -> None:
    Sink.said.clear()


def sink_of(logger: Logger) -> Sink:
    (sink,) = sinks(SimpleNamespace(loggers=[logger]))  # type: ignore[arg-type]
    return sink


def log_all(sink: Sink) -> None:
    sink.text("samples/0", "**a jig**", 3)
    sink.sound("samples/0/1", SOUND, 3)
    sink.figure("front", Figure(), 3)
    sink.histogram("rewards/diversity", torch.rand(2, 3), 3)


def test_weights_and_biases() -> None:
    logger = WandbLike()
    log_all(sink_of(logger))
    text, audio, image, histogram = logger.calls
    assert text == ("text", "samples/0", ["step", "text"], [[3, "**a jig**"]])
    assert audio == ("audio", "samples/0/1", (80,), [8000]) and image == ("image", "front", Figure)
    assert histogram == ("image", "rewards/diversity", Figure)  # a picture, for want of histograms


def test_mlflow() -> None:
    logger = MLflowLike()
    log_all(sink_of(logger))
    assert logger.artifacts.keys() == {
        "samples/0-step3.md", "samples/0/1-step3.wav", "front-step3.png", "rewards/diversity-step3.png",
    }  # fmt: skip
    assert logger.artifacts["samples/0/1-step3.wav"][:4] == b"RIFF"


def test_files_beside_a_csv(tmp_path: Path) -> None:
    log_all(sink_of(CSVLogger(tmp_path, name="x", version=0)))
    media = tmp_path / "x" / "version_0" / "media"
    assert (media / "samples/0-step3.md").read_text() == "**a jig**\n" and (media / "front-step3.png").stat().st_size
    with wave.open(str(media / "samples/0/1-step3.wav")) as stream:
        played = np.frombuffer(stream.readframes(80), "<i2") / 32767
        assert stream.getframerate() == 8000
    np.testing.assert_allclose(played, SOUND.samples[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("logger", [Numbers(), Broken()], ids=["numbers", "broken"])
def test_what_a_logger_does_not_take_is_said_once(logger: Logger) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        log_all(sink_of(logger))
        log_all(sink_of(logger))
    (warning,) = said
    assert str(warning.message).startswith(f"{type(logger).__name__} takes no text")


def test_all_loggers_at_once_in_a_fit(tmp_path: Path) -> None:
    def sound(text: str, prompt: str) -> tuple[torch.Tensor, int]:
        return torch.zeros(80), 8000

    loggers = [
        TensorBoardLogger(tmp_path, "", "tb"),
        CSVLogger(tmp_path, "", "csv"),
        WandbLike(),
        MLflowLike(),
        DummyLogger(),
    ]
    callbacks = [DiversityLogging({"distinct": DistinctFirst(), "length": MeanLength()}), SampleLogging(audio=sound)]
    student = student_of(tiny_folder(tmp_path / "model"))
    trainer(callbacks, logger=loggers, val_check_interval=1).fit(student, batches(1), batches(1))
    assert list((tmp_path / "tb").glob("events*"))
    assert {path.suffix for path in (tmp_path / "csv" / "media").rglob("*.*")} == {".md", ".wav", ".png"}
    assert {call[0] for call in loggers[2].calls} == {"text", "audio", "image"}  # type: ignore[attr-defined]
    assert len(loggers[3].artifacts) >= 3  # type: ignore[attr-defined]
