"""SampleLogging: what the student says or plays, in any logger."""

import textwrap
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from cfg_distill.audio import Waveform, within_full_scale
from cfg_distill.callbacks.media import Sink, sinks
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_counts
from cfg_distill.evaluation.renderers import Renderer, renderer_of
from cfg_distill.evaluation.written import words_of
from cfg_distill.sampling.samples import Samples

AudioOf = Callable[[str, str], tuple[np.ndarray, int]]


@runtime_checkable
class _Distillation(Protocol):
    """A module whose student comes from a folder."""

    student: Any


class SampleLogging(Callback):
    """Log samples of the first validation prompts at every validation: text as text, waveforms as sound.

    The tag of a prompt has its number and its words. A text stands as the model's folder renders it: music as its score, for
    one. They are the samples that the validation drew anyway, so they cost nothing, and the same prompts and seeds come back
    each time. With :class:`StudentEMA` the averaged weights draw them. TensorBoard, Weights & Biases and MLflow show them.
    Beside another logger with a folder, such as CSVLogger, they become files in ``media/``. Rank 0 logs its own.

    Example::

        - class_path: cfg_distill.callbacks.SampleLogging
          init_args:
            num_prompts: 4
            audio: cfg_distill.tunes.rendering.audio

    Args:
        num_prompts: how many prompts.
        num_samples: how many samples of each.
        audio: how a text sounds: a function of sample and prompt that returns a waveform (float32, [length] within -1
            to 1) and its rate. None for texts that have no sound. The samples of audio models need none: they are played
            as they are, mixed down to one channel, and turned down where they exceed full scale.
    """

    def __init__(self, num_prompts: int = 4, num_samples: int = 2, audio: AudioOf | None = None) -> None:
        self.num_prompts = num_prompts
        self.num_samples = num_samples
        self.audio = audio
        self._shown: list[tuple[str, list[Any]]] = []
        self._renderer = Renderer()

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        return problems_of_counts(num_prompts=self.num_prompts, num_samples=self.num_samples)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if problems := self.problems():
            raise ConfigError([problem.under(type(self).__name__) for problem in problems])
        if isinstance(pl_module, _Distillation):
            self._renderer, _ = renderer_of(cast(Any, pl_module.student).path)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        samples: Samples = outputs["samples"]
        wanted = self.num_prompts - len(self._shown)
        for prompt, group in list(zip(samples.prompts, samples.groups(), strict=True))[:wanted]:
            self._shown.append((prompt, group[: self.num_samples]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        for sink in sinks(trainer):
            for number, (prompt, group) in enumerate(self._shown):
                self._log(sink, f"samples/{number}-{words_of(prompt, 40)}", prompt, group, trainer.global_step)

    def _log(self, sink: Sink, tag: str, prompt: str, group: list[Any], step: int) -> None:
        texts = [self._text(output, prompt) for output in group if isinstance(output, str)]
        blocks = [textwrap.indent(text, "    ") for text in texts]  # four spaces: TensorBoard shows them as they are
        sink.text(tag, "\n\n".join([f"**{prompt}**", *blocks]), step)
        for number, output in enumerate(group):
            sound = self._sound(output, prompt)
            if sound is not None:
                sink.sound(f"{tag}/{number}", sound, step)

    def _text(self, output: str, prompt: str) -> str:
        """A text as the model's folder renders it; as it is, where a student in training wrote what cannot be rendered."""
        try:
            return self._renderer.text(output, prompt)
        except Exception:
            return output

    def _sound(self, output: Any, prompt: str) -> Waveform | None:
        """The sound to play: one channel, since TensorBoard plays no more, within full scale; None when there is none."""
        try:
            if isinstance(output, Waveform):
                mono = Waveform(output.mono()[None].float(), output.rate)
            elif self.audio is None or not isinstance(output, str):
                return None
            else:
                samples, rate = self.audio(output, prompt)
                mono = Waveform(torch.as_tensor(samples, dtype=torch.float32).reshape(1, -1), rate)
            return within_full_scale(mono)[0] if mono.samples.numel() else None
        except Exception as error:  # a student in training may write what no renderer can play
            rank_zero_warn(f"A sample could not be turned into sound: {type(error).__name__}: {error}")
            return None
