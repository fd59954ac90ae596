"""Audio encoders of transformers as embedders of sound. Shapes: N clips, L samples of sound, D embedding width."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoTokenizer

from cfg_distill.audio import Waveform, problems_of_audio_extra, resampled
from cfg_distill.embedders.base import Embedder, problems_of_path
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_counts
from cfg_distill.folders import from_hub, lacks_words, resolve

SHORTEST = 0.1
"""Seconds: shorter clips are filled up with silence, since an encoder's first convolutions need some samples."""


class _Encoder(nn.Module):
    """A frozen network, and the vectors of the clips that it has heard, for as long as the clips live."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.heard: WeakKeyDictionary[Waveform, Tensor] = WeakKeyDictionary()


# A reward and several metrics mostly name one encoder: it is loaded once in a process, and hears each clip once.
_encoders: WeakValueDictionary[tuple[type, str, float], _Encoder] = WeakValueDictionary()


class AudioEmbedder(Embedder):
    """Any audio encoder of transformers (wav2vec 2.0, HuBERT, WavLM, AST, ...): its last hidden states, averaged.

    Clips are mixed down to one channel and brought to the encoder's rate. A clip longer than a window is read in
    evenly spaced windows, whose unit vectors are averaged: no window is drawn at random, so that a clip has one vector.
    Windows of one length share a batch, so nothing of a neighbour leaks in. Whisper pads each window to 30 s: the mean takes
    the states of the sound alone. AST pads each to 10.24 s, and its mean takes all: give it clips of at least ten seconds.

    Args:
        path: a model folder or a hub name.
        batch_size: windows at once.
        window: seconds of sound that are read at once.
    """

    encoder: _Encoder
    kind = "an audio encoder (wav2vec 2.0, HuBERT, AST)"

    def __init__(self, path: str, batch_size: int = 16, window: float = 10.0) -> None:
        super().__init__()
        self.path = path
        self.batch_size = batch_size
        self.window = window

    # Settings, known before the weights are

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = problems_of_path(self.path)
        found += problems_of_audio_extra()
        found += problems_of_counts(batch_size=self.batch_size)
        if not SHORTEST <= self.window < math.inf:
            found.append(Problem("window", f"expected at least {SHORTEST} seconds, but got {self.window}."))
        try:
            return found or self._problems_of_model()
        except ConfigError as error:
            return [Problem("path", problem.text) for problem in error.problems]

    def _problems_of_model(self) -> list[Problem]:
        """Why configuration or feature extractor fit no such embedder."""
        if self.config.model_type == "clap":
            reason = "it is a CLAP model, which `cfg_distill.embedders.CLAP` reads"
            return [self._unfit(reason, "Use that class for it.")]
        if hasattr(self.config, "codebook_size"):
            return [self._unfit(f"it is a codec ({self.config.model_type}), which makes codes and no vectors")]
        return self._problems_of_extractor()

    def _problems_of_extractor(self) -> list[Problem]:
        if getattr(self.extractor, "sampling_rate", None) is None:
            return [self._unfit(f"its feature extractor `{type(self.extractor).__name__}` reads no sound")]
        return []

    def _unfit(self, reason: str, advice: str = "Name another folder or hub name.") -> Problem:
        return Problem("path", f"expected {self.kind}, but `{self.path}` is none: {reason}. {advice}")

    @cached_property
    def config(self) -> Any:
        return self._from_hub(AutoConfig)

    @cached_property
    def extractor(self) -> Any:
        return self._from_hub(AutoFeatureExtractor)

    @property
    def rate(self) -> int:
        """Samples per second that the encoder reads."""
        return self.extractor.sampling_rate

    def _from_hub(self, loader: Any, **settings: Any) -> Any:
        return from_hub(loader, self.path, self.kind, "Embedder", **settings)

    def load(self) -> Self:
        if "encoder" not in self._modules:
            key = (type(self), resolve(self.path), self.window)
            encoder = _encoders.get(key)
            if encoder is None:
                model = self._from_hub(AutoModel, dtype=torch.float32)
                # Of an encoder-decoder (Whisper) only the encoder hears.
                encoder = _Encoder(model.get_encoder() if model.config.is_encoder_decoder else model)
                _encoders[key] = encoder
            self.encoder = encoder
        return self

    @property
    def model(self) -> Any:
        """The network of transformers, which may be shared with other embedders."""
        return self.encoder.network

    # Vectors

    @torch.no_grad()
    def embed(self, outputs: Sequence[Waveform]) -> Tensor:
        # Dropout in a reward would be noise; a parent's train() must not switch it on.
        self.model.eval()
        device, heard = self.model.device, self.encoder.heard
        windows = {clip: self._windows(clip) for clip in dict.fromkeys(outputs) if not self._has_heard(clip)}
        flat = [window_L for parts in windows.values() for window_L in parts]
        order = sorted(range(len(flat)), key=lambda index: len(flat[index]))
        vectors: dict[int, Tensor] = {}
        with torch.autocast(device.type, enabled=False):
            for batch in self._batches(order, [len(window_L) for window_L in flat]):
                vectors |= zip(batch, self._vectors([flat[index] for index in batch]).float(), strict=True)
        taken = 0
        for clip, parts in windows.items():
            unit_MD = normalize(torch.stack([vectors[taken + index] for index in range(len(parts))]), dim=-1)
            heard[clip] = normalize(unit_MD.mean(0), dim=-1)
            taken += len(parts)
        return torch.stack([heard[clip].to(device) for clip in outputs])

    def _has_heard(self, clip: Waveform) -> bool:
        return isinstance(clip, Waveform) and clip in self.encoder.heard

    def _windows(self, clip: Waveform) -> list[np.ndarray]:
        """A clip as mono sound at the encoder's rate, in windows of one length."""
        if not isinstance(clip, Waveform):
            raise ConfigError(
                f"Embedder `{self.path}`: expected sound, but got a {type(clip).__name__}. For a model that writes text, use an"
                " embedder of text; for the adherence of sound to its prompt, a CLAP model, which reads both."
            )
        if clip.rate != self.rate:
            _tell_once(self.path, clip.rate, self.rate)
        mono = resampled(Waveform(clip.mono()[None], clip.rate), self.rate).samples[0].numpy()
        mono = np.pad(mono, (0, max(0, math.ceil(SHORTEST * self.rate) - len(mono))))
        length = int(self.window * self.rate)
        count = math.ceil(len(mono) / length)
        starts = np.linspace(0, max(0, len(mono) - length), count).astype(int)
        return [mono[start : start + length] for start in starts]

    def _batches(self, order: list[int], lengths: list[int]) -> list[list[int]]:
        """Indices, sorted by length, in batches of one length each."""
        batches: list[list[int]] = []
        for index in order:
            if not batches or len(batches[-1]) == self.batch_size or lengths[batches[-1][0]] != lengths[index]:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _vectors(self, windows: list[np.ndarray]) -> Tensor:
        """Windows of one length to ``[N, D]``."""
        features = self.extractor(windows, sampling_rate=self.rate, return_tensors="pt")
        # Its first entry is the sound; a mask would be all ones, and some encoders were trained without any.
        name = self.extractor.model_input_names[0]
        states_NTD = self.model(features[name].to(self.model.device, torch.float32)).last_hidden_state
        padded = vars(self.extractor).get("n_samples")  # of Whisper's, whatever the window
        heard = math.ceil(states_NTD.shape[1] * min(len(windows[0]) / padded, 1.0)) if padded else None
        return states_NTD[:, :heard].mean(1)


class CLAP(AudioEmbedder):
    """A CLAP model: sound through its audio tower, text through its text tower, into one space.

    So the cosine of a clip with its prompt is adherence (:class:`cfg_distill.rewards.PromptAdherence`), and the cosine
    of two clips is what a diversity reward takes. transformers' feature extractor crops long clips at random and, for
    models with fusion, marks one random clip of a batch as long; here neither happens (see :class:`AudioEmbedder`): a
    reward must not depend on a clip's neighbours. Source: Wu et al., arXiv 2211.06687.

    Args:
        path: a model folder or a hub name, such as ``laion/larger_clap_music``.
        batch_size: windows or texts at once.
    """

    kind = "a CLAP model"

    def __init__(self, path: str, batch_size: int = 16) -> None:
        super().__init__(path, batch_size)

    def _problems_of_model(self) -> list[Problem]:
        if self.config.model_type != "clap":
            return [self._unfit(f"its config.json says `{self.config.model_type}`")]
        _ = self.tokenizer  # raises where it is missing: a metric of adherence would find out at the first validation
        return self._problems_of_extractor()

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer, known = self._from_hub(AutoTokenizer), self.config.text_config.vocab_size
        if lacks_words(tokenizer, known):
            raise ConfigError(
                self._unfit(
                    f"its tokenizer knows {len(tokenizer)} tokens, and its text tower {known}",
                    "Copy the tokenizer's files (tokenizer.json) into the folder, or name another.",
                )
            )
        return tokenizer

    def load(self) -> Self:
        self.window = float(self.extractor.max_length_s)
        _ = self.tokenizer
        return super().load()

    @torch.no_grad()
    def embed(self, outputs: Sequence[Waveform | str]) -> Tensor:
        if outputs and all(isinstance(output, str) for output in outputs):
            return self._embed_texts([str(output) for output in outputs])
        return super().embed(outputs)  # type: ignore[arg-type]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        self.model.eval()
        device = self.model.device
        # Positions of the text tower start behind its padding token's.
        positions = self.config.text_config.max_position_embeddings - self.config.text_config.pad_token_id - 1
        limit = min(self.tokenizer.model_max_length, positions)
        parts = []
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(texts), self.batch_size):
                batch = self.tokenizer(
                    texts[start : start + self.batch_size],
                    padding=True,
                    truncation=True,
                    max_length=limit,
                    return_tensors="pt",
                ).to(device)
                output = self.model.get_text_features(batch["input_ids"], batch["attention_mask"])
                parts.append(output.pooler_output.float())
        return normalize(torch.cat(parts), dim=-1)

    def _vectors(self, windows: list[np.ndarray]) -> Tensor:
        sound_NL = torch.from_numpy(np.stack(windows)).to(self.model.device)
        is_longer_N1 = torch.zeros(len(windows), 1, dtype=torch.bool)
        return self.model.get_audio_features(self._features(sound_NL), is_longer_N1).pooler_output

    def _features(self, sound_NL: Tensor) -> Tensor:
        """The feature extractor's output for windows, ``[N, channels, frames, mels]``, on the device of the sound.

        The extractor itself takes a frame at a time in numpy, on the processor, and draws random numbers.
        """
        made, longest = self.extractor, self.extractor.nb_max_samples
        repeats = longest // sound_NL.shape[1]
        if made.padding == "repeat":
            sound_NL = sound_NL.repeat(1, repeats + 1)[:, :longest]
        elif made.padding == "repeatpad":
            sound_NL = sound_NL.repeat(1, repeats)
        sound_NL = pad(sound_NL, (0, longest - sound_NL.shape[1]))
        is_fusion = made.truncation == "fusion"
        shape = torch.hann_window(made.fft_window_size, device=sound_NL.device)
        spectrum = torch.stft(sound_NL, made.fft_window_size, made.hop_length, window=shape, return_complex=True)
        filters = torch.as_tensor(made.mel_filters if is_fusion else made.mel_filters_slaney, dtype=torch.float32)
        mels = spectrum.abs().square().transpose(1, 2) @ filters.to(sound_NL.device)
        decibels = 10 * mels.clamp(min=1e-10).log10()
        # A model with fusion reads a whole and three crops of a long clip; of a short one, the same four times.
        return decibels[:, None].repeat(1, 4 if is_fusion else 1, 1, 1)


@cache
def _tell_once(path: str, rate: int, wanted: int) -> None:
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        logging.getLogger(__name__).warning("Sound of %d Hz is resampled to the %d Hz of `%s`.", rate, wanted, path)
