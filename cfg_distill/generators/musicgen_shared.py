"""The parts that a MusicGen student and its teacher share: text encoder, melody, codec and files. They are frozen.

Shapes: N rows, K codebooks, F frames, S positions of a condition, D width of the decoder, C channels, L samples of sound.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import FeatureExtractionMixin

from cfg_distill.audio import Waveform, problems_of_file, read_audio
from cfg_distill.errors import ITS_PROMPT, Problem, PromptProblem
from cfg_distill.generators.chroma import Chroma
from cfg_distill.generators.frozen import Frozen
from cfg_distill.prompt import Prompt

TRAINED_SECONDS = 30
"""The longest clip of MusicGen's training."""
NO_MELODY = "none"
"""In place of a file: the prompt has no melody on purpose."""
_CACHED = 1024
_FRAMES_AT_ONCE = 4000


class Shared(Frozen[Any]):
    """The frozen parts of one MusicGen, in float32. No module registers them: no checkpoint, average or optimiser sees them.

    The condition of a prompt is computed once and alone, so that its values depend on no neighbour in a batch, and a resumed
    run computes the values of an unbroken one. The last thousand conditions are kept, and student and teacher share them.

    Args:
        whole: the model of transformers; its decoder is taken out.
        tokenizer: of the text encoder.
        path: where the model came from.
        text_positions: S of the text, for a model that reads the text in front of the sound; None for a model that attends
            to the text.
    """

    def __init__(self, whole: Any, tokenizer: Any, path: str, text_positions: int | None) -> None:
        del whole.decoder
        super().__init__(whole)
        self.whole = self.model
        self.tokenizer = tokenizer
        self.path = path
        self.text_positions = text_positions
        self._kept: OrderedDict[tuple[str, str], Tensor] = OrderedDict()

    def to(self, device: torch.device) -> Shared:
        """On a device: the decoder's, since Lightning moves the decoder only."""
        if next(self.whole.parameters()).device != device:
            self.whole.to(device)
            self._kept.clear()
        return self

    @property
    def config(self) -> Any:
        """The config of the whole model."""
        return self.whole.config

    # Conditions

    def condition_SD(self, prompt: Prompt) -> Tensor:
        """The decoder's input for a prompt without problems, ``[S, D]``: zeros for no text, as in the model's own training.

        Raises:
            ConfigError: the melody's file cannot be read as sound.
        """
        text = prompt.text
        if self.text_positions is None:
            return self._null(1) if not text else self._once("text", text, self._text)
        melody = prompt.conditions.get("melody", NO_MELODY)
        chroma_SD = self._once("melody", melody, self._melody)
        text_SD = self._once("text", text, self._text) if text else self._null(0)
        # Zeros that the model attends to, as to the padding of a batch in transformers. All prompts take the same number of
        # positions, so that the sound stands at the same positions under a prompt and under none:
        #     melody (chroma_length) | text ... zeros (text_positions) | sound
        rest_SD = self._null(self.text_positions - len(text_SD))
        return torch.cat([chroma_SD, text_SD, rest_SD])

    def _once(self, kind: str, value: str, compute: Callable[[str], Tensor]) -> Tensor:
        key = (kind, value)
        if key not in self._kept:
            with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                self._kept[key] = compute(value)
            if len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @property
    def _device(self) -> torch.device:
        return next(self.whole.parameters()).device

    def _null(self, num_positions: int) -> Tensor:
        decoder = self.config.decoder
        width = vars(decoder).get("cross_attention_hidden_size") or decoder.hidden_size
        return torch.zeros(num_positions, width, device=self._device)

    def _text(self, text: str) -> Tensor:
        ids_1S = torch.tensor([self.tokenizer(text)["input_ids"]], device=self._device)
        hidden_1SD = self.whole.text_encoder(input_ids=ids_1S).last_hidden_state
        return self._projected("enc_to_dec_proj", hidden_1SD)[0]

    def _melody(self, file: str) -> Tensor:
        length = self.config.chroma_length
        if file != NO_MELODY:
            chroma_SC = self._chroma(read_audio(file, self._chroma.rate)).to(self._device)
        else:
            chroma_SC = torch.zeros(1, self.config.num_chroma, device=self._device)
            chroma_SC[:, 0] = 1  # the model's own code for "no melody"
        # A short melody is repeated, a long one is cut.
        chroma_SD = self._projected("audio_enc_to_dec_proj", chroma_SC)
        return chroma_SD.repeat(-(-length // len(chroma_SD)), 1)[:length]

    def _projected(self, name: str, hidden: Tensor) -> Tensor:
        projection = dict(self.whole.named_children()).get(name)  # none where the widths are equal
        return hidden if projection is None else projection(hidden)

    @cached_property
    def _chroma(self) -> Chroma:
        return Chroma.of(self.preprocessor)

    # Sound

    @torch.no_grad()
    def sound(self, tokens_NKF: Tensor) -> list[Waveform]:
        """Codes to waveforms. The codebooks of a stereo model alternate between left and right."""
        rows = max(1, _FRAMES_AT_ONCE // max(1, tokens_NKF.shape[-1]))
        channels = self.config.decoder.audio_channels
        with torch.autocast(self._device.type, enabled=False):
            sound_NCL = torch.cat(
                [
                    torch.cat([self._decoded(part_NKF[:, side::channels]) for side in range(channels)], dim=1).cpu()
                    for part_NKF in tokens_NKF.split(rows)
                ]
            )
        return [Waveform(sound_CL.clone(), self.config.audio_encoder.sampling_rate) for sound_CL in sound_NCL]

    def _decoded(self, tokens_NKF: Tensor) -> Tensor:
        return self.whole.audio_encoder.decode(tokens_NKF[None], audio_scales=[None] * len(tokens_NKF)).audio_values

    # Files

    @cached_property
    def preprocessor(self) -> dict[str, Any]:
        """The settings of the model's feature extractor; the extractor of a melody model needs torchaudio."""
        return FeatureExtractionMixin.get_feature_extractor_dict(self.path)[0]

    def differences(self, other: Any) -> list[str]:
        """Names of the tensors, the decoder's aside, in which another whole model differs from this one."""
        own, its = self.whole.state_dict(), other.state_dict()
        return sorted(
            name
            for name in own.keys() | its.keys()
            if not name.startswith("decoder.")
            and (name not in own or name not in its or not torch.equal(own[name].cpu(), its[name].cpu()))
        )

    def generation_config(self, max_length: int) -> Any:
        """The settings of transformers' ``generate`` for a student.

        Neutral on purpose: a distilled model needs no guidance, and a second guidance would compound. The start model's file
        says 3.
        """
        settings: dict[str, Any] = {
            "do_sample": True,
            "guidance_scale": 1.0,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
        }
        config = copy.deepcopy(self.whole.generation_config)
        config.update(**settings, max_length=max_length)
        return config

    def save(self, decoder: nn.Module, folder: str | Path, max_length: int) -> None:
        """Write the whole model with this decoder, tokenizer and processor included.

        Args:
            decoder: the student's decoder.
            folder: the folder to write.
            max_length: the default length of transformers' ``generate``, in positions.
        """
        # The shared parts with the student's decoder, in a copy that shares all tensors.
        whole = copy.copy(self.whole)
        whole._modules = {**self.whole._modules, "decoder": decoder}
        whole.generation_config = self.generation_config(max_length)
        whole.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        content = json.dumps(self.preprocessor, indent=2, sort_keys=True)
        (Path(folder) / "preprocessor_config.json").write_text(content + "\n", encoding="utf-8")


Melody = Literal["required", "optional"]


def problems_of_prompt(prompt: Prompt, reads_melody: bool, melody: Melody) -> list[Problem]:
    """Conditions of a prompt that a model does not read, needs, or cannot read."""
    conditions = prompt.conditions
    known = {"melody"} if reads_melody else set()
    remedy = "It knows melody." if reads_melody else "Use a melody model (model_type musicgen_melody)."
    found = [
        f"carries the condition `{name}`, which the model does not read. {remedy}"
        for name in sorted(conditions.keys() - known)
    ]
    if reads_melody and melody == "required" and not conditions.get("melody"):
        found.append(
            "expected a melody, which this model reads, but it has none. Give each prompt a `@/melody` (in a file of"
            ' prompts: {"prompt": ..., "conditions": {"melody": "tune.wav"}}), or'
            f" {NO_MELODY} in place of a file, or set `@/model.generator.init_args.melody` to optional."
        )
    if reads_melody and (file := conditions.get("melody", NO_MELODY) or NO_MELODY) != NO_MELODY:
        found += [f"Prompt {ITS_PROMPT}, melody: {problem}" for problem in problems_of_file(file)]
    return [PromptProblem.of(prompt, reason) for reason in found]


def problems_of_text(text: str, tokenizer: Any, positions: int) -> list[Problem]:
    """A problem where a text takes more positions than there are."""
    if len(tokenizer(text)["input_ids"]) <= positions:
        return []
    reason = (
        f"its text takes more positions than the {positions} of `@/model.generator.init_args.text_positions`. Raise it, or"
        " shorten the prompt."
    )
    return [PromptProblem.of(text, reason)]
