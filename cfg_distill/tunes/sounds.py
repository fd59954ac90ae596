"""Rendered tunes as the real clips of a ladder of sound: a stand-in for recorded music, which is not shipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cfg_distill.audio import Waveform
from cfg_distill.errors import Problem
from cfg_distill.evaluation.ladder_sound import SoundLadder
from cfg_distill.generators import Prompt, PromptLike
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.ladder import matches
from cfg_distill.tunes.prompts import understand
from cfg_distill.tunes.rendering import audio


class RenderedLadder(SoundLadder):
    """Sound of real tunes of the validation split, which no model of this package was trained on."""

    def prompts(self) -> Sequence[PromptLike]:
        return [
            f"{kind}, folk music on a simple synthesiser, one melody"
            for kind in ("jig", "reel", "hornpipe", "air", "march")
        ]

    def problems(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        found = super().problems(prompts)
        for prompt in prompts:
            text = Prompt.of(prompt).text
            if (count := len(self._tunes(text))) < self.samples:
                found.append(
                    Problem("", f"Prompt {text!r}: expected {self.samples} tunes of its kind, but there are {count}.")
                )
        return found

    def clips(self, prompts: Sequence[PromptLike]) -> list[list[Waveform]]:
        return [[self._clip(tune, text) for tune in self._tunes(text)[: self.samples]] for text in map(_text, prompts)]

    def _clip(self, tune: str, text: str) -> Waveform:
        sound, rate = audio(tune, text)
        length = round(self.seconds * rate)
        samples_L = torch.from_numpy(sound)
        return Waveform(samples_L.repeat(-(-length // max(1, len(samples_L))))[None, :length], rate)

    @staticmethod
    def _tunes(text: str) -> list[str]:
        asked = understand(text).slots
        return [" ".join(tune.tokens) for tune in tunes_of("validation") if matches(tune.slots, asked)]


def _text(prompt: PromptLike) -> str:
    return Prompt.of(prompt).text
