"""The ladder of sound: real clips, and clips that must not be paid. Shapes: C channels, L samples of sound."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from cfg_distill.audio import Waveform
from cfg_distill.errors import Problem, problems_of
from cfg_distill.evaluation.ladder import Ladder, Rung, samples_of
from cfg_distill.generators import Guidance, PromptLike, device, open_generator
from cfg_distill.generators.length import frames
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw


def silence(clip: Waveform) -> Waveform:
    """Nothing, as long as the clip."""
    return Waveform(torch.zeros_like(clip.samples), clip.rate)


def hum(clip: Waveform, frequency: float = 50.0) -> Waveform:
    """A steady tone and two overtones at half of full scale, as long as the clip."""
    time_L = torch.arange(clip.samples.shape[-1]) / clip.rate
    tone_L = sum(torch.sin(2 * math.pi * n * frequency * time_L) / n for n in (1, 2, 3))
    assert isinstance(tone_L, torch.Tensor)
    return Waveform((0.5 * tone_L / tone_L.abs().max()).expand_as(clip.samples).clone(), clip.rate)


def white_noise(clip: Waveform, seed: int) -> Waveform:
    """White noise at the loudness of the clip."""
    noise_CL = torch.randn(clip.samples.shape, generator=torch.Generator().manual_seed(seed))
    return Waveform(noise_CL * clip.samples.square().mean().sqrt(), clip.rate)


def clipped(clip: Waveform, gain: float = 20.0) -> Waveform:
    """The clip turned up far beyond full scale, and cut off there."""
    return Waveform((gain * clip.samples).clamp(-1, 1), clip.rate)


def looped(clip: Waveform, seconds: float = 0.5) -> Waveform:
    """The first part of the clip, again and again."""
    length = clip.samples.shape[-1]
    part_CL = clip.samples[:, : max(1, round(seconds * clip.rate))]
    return Waveform(part_CL.repeat(1, -(-length // part_CL.shape[-1]))[:, :length], clip.rate)


def delayed(clip: Waveform, seconds: float) -> Waveform:
    """The clip, rotated in time."""
    return Waveform(clip.samples.roll(round(seconds * clip.rate), dims=-1), clip.rate)


def with_noise(clip: Waveform, seed: int, decibels: float = -40.0) -> Waveform:
    """The clip under noise that lies this far below it."""
    return Waveform(clip.samples + 10 ** (decibels / 20) * white_noise(clip, seed).samples, clip.rate)


def louder(clip: Waveform, decibels: float) -> Waveform:
    """The clip at another volume."""
    return Waveform(10 ** (decibels / 20) * clip.samples, clip.rate)


class SoundLadder(Ladder):
    """The ladder of sound: derive from it, and return real clips from :meth:`clips`.

    Attributes:
        path: a model of sound that draws the rungs ``base`` and ``guided``; empty for none.
        guidance: the scale of the guided rung.
        samples: clips per prompt.
        seconds: of every clip.
        seed: of the samples and of all that is random.
    """

    path = ""
    guidance = 3.0
    samples = 4
    seconds = 4.0
    seed = 0

    @abstractmethod
    def clips(self, prompts: Sequence[PromptLike]) -> list[list[Waveform]]:
        """Real clips of ``seconds`` length that follow the prompts: as many different ones for each as ``samples`` says."""

    def problems(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        found = [] if len(prompts) >= 2 else [Problem("", f"Expected at least 2 prompts, but got {len(prompts)}.")]
        if self.path:
            found += [Problem("", str(problem)) for problem in problems_of(open_generator(self.path))]
        return found

    def rungs(self, prompts: Sequence[PromptLike]) -> Iterator[Rung]:
        real = self.clips(prompts)

        def made(groups: Sequence[Sequence[Any]]) -> Any:
            return samples_of(prompts, groups)

        def each(change: Any) -> Any:
            return made([[change(clip, n) for n, clip in enumerate(group)] for group in real])

        def first(change: Any) -> Any:
            return made([[change(group[0], n) for n in range(len(group))] for group in real])

        yield Rung("real clips", "real", made(real))
        if self.path:
            generator = open_generator(self.path).load().to(device())
            sampling = Sampling(self.samples, frames(generator, self.seconds))
            yield Rung(
                "guided", "guided", partial(draw, generator, prompts, sampling, Guidance(self.guidance), self.seed + 1)
            )
            yield Rung("base", "base", partial(draw, generator, prompts, sampling, None, self.seed))
        yield Rung("silence", "degenerate", each(lambda clip, n: silence(clip)))
        yield Rung("hum", "degenerate", each(lambda clip, n: hum(clip)))
        yield Rung("white noise", "degenerate", each(lambda clip, n: white_noise(clip, self.seed + n)))
        yield Rung("clipped", "degenerate", each(lambda clip, n: clipped(clip)))
        yield Rung("looped", "degenerate", each(lambda clip, n: looped(clip)))
        yield Rung("a copied clip", "degenerate", made([[real[0][0]] * len(group) for group in real]))
        yield Rung("different clips", "different", made(real))
        yield Rung("volume", "same", first(lambda clip, n: louder(clip, -3.0 * n)))
        yield Rung("a little noise", "same", first(lambda clip, n: with_noise(clip, self.seed + n)))
        yield Rung("delayed", "same", first(lambda clip, n: delayed(clip, 0.1 * n)))
        yield Rung("upside down", "same", first(lambda clip, n: Waveform((-1) ** n * clip.samples, clip.rate)))
        yield Rung("a silent one", "same", first(lambda clip, n: clip if n else silence(clip)))
        yield Rung("all silent", "same", first(lambda clip, n: silence(clip)))
