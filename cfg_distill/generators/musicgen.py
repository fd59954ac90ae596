"""MusicGen as a generator: mono, stereo and melody models of transformers.

Shapes: B prompts, N rows (B x G samples), K codebooks, T positions, F frames, S positions of a condition, V vocabulary,
D width. Tokens live in the delayed layout of :mod:`cfg_distill.generators.delay`, which is the model's own: Copet et al.,
arXiv 2306.05284.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoTokenizer,
    MusicgenForConditionalGeneration,
    MusicgenMelodyForConditionalGeneration,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from cfg_distill.audio import Waveform
from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.folders import base_of, from_hub, is_adapter, lacks_words, resolve
from cfg_distill.folders.profile import copy_profile
from cfg_distill.generators.base import DTYPES, DecodingState, DTypeName, Encoded, Generator
from cfg_distill.generators.delay import undelayed
from cfg_distill.generators.growing_cache import growing_cache
from cfg_distill.generators.linear import use_products
from cfg_distill.generators.lora import LoRA, add_adapter, fill, read_adapter, save_adapter
from cfg_distill.generators.musicgen_shared import TRAINED_SECONDS, Melody, Shared, problems_of_prompt, problems_of_text
from cfg_distill.generators.networks import check_fit, network_of
from cfg_distill.generators.predictions import Head, HiddenStates, Predictions
from cfg_distill.prompt import Prompt, PromptLike

_DECODER = "decoder."
_KIND = "a MusicGen"
MODELS: dict[str, Any] = {
    "musicgen": MusicgenForConditionalGeneration,
    "musicgen_melody": MusicgenMelodyForConditionalGeneration,
}


class MusicGen(Generator):
    """A generator over ``MusicgenForConditionalGeneration`` and ``MusicgenMelodyForConditionalGeneration``.

    Training, averages and checkpoints see the decoder alone. Text encoder, projections and codec are frozen, and student and
    teacher share them. A dropped or empty prompt is the null condition of the model's training.

    A clip has at most ``max_position_embeddings`` positions (2048: 40 s): one per frame, and the longest delay. The
    conditions of a melody model take some of them. The position table could be longer, but the model was trained on 30 s.

    Args:
        path: a model folder or a hub name. An adapter folder stands for its base with the adapter added to the decoder.
        dtype: the dtype of the decoder's weights; the frozen parts stay float32. Training takes float32, or ``lora``.
        melody: whether each prompt of a melody model must have a melody (``Prompt(text, melody="tune.wav")``).
        text_positions: positions for the text of any prompt, which a melody model reads in front of the sound. The model
            attends to all of them, as to the padding of a batch in transformers. Other models attend to the text only.
        lora: train an adapter of the decoder instead of all its weights; the teacher then shares the base's weights.
    """

    adapter_prefix = _DECODER
    shortest_prompt = 0
    model: Any  # the decoder; transformers' own classes type their call too loosely to check against

    def __init__(
        self,
        path: str = "facebook/musicgen-small",
        dtype: DTypeName = "float32",
        melody: Melody = "required",
        text_positions: int = 64,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.dtype = dtype
        self.melody = melody
        self.text_positions = text_positions
        self.lora = lora

    # Settings, known before weights are loaded

    def problems(self, context: Context = Context()) -> list[Problem]:
        if found := self.problems_of_kind(_KIND, MODELS, lambda: self.text_tokenizer):
            return found
        if self._reads_melody and self.text_positions < 1:
            found.append(Problem("text_positions", f"expected at least 1, but got {self.text_positions}."))
        return found + self.problems_of_lora(context, self._without_weights)

    def _without_weights(self) -> Any:
        with torch.device("meta"):
            return MODELS[self.config.model_type]._from_config(self.config).decoder

    @cached_property
    def config(self) -> Any:
        return from_hub(AutoConfig, base_of(self.path), _KIND)

    @property
    def _reads_melody(self) -> bool:
        return self.config.model_type == "musicgen_melody"

    @property
    def delays(self) -> tuple[int, ...]:  # type: ignore[override]
        decoder = self.config.decoder
        return tuple(k // decoder.audio_channels for k in range(decoder.num_codebooks))

    @property
    def pad_token(self) -> int:  # type: ignore[override]
        return self.config.decoder.pad_token_id

    @property
    def sample_rate(self) -> int:  # type: ignore[override]
        return self.config.audio_encoder.sampling_rate

    @property
    def frame_rate(self) -> float:  # type: ignore[override]
        return self.config.audio_encoder.frame_rate

    @property
    def max_positions(self) -> int:
        return self.config.decoder.max_position_embeddings

    @property
    def reserved_positions(self) -> int:
        """The longest delay, and the positions in front of the sound of a melody model: melody, then text."""
        return max(self.delays) + (self.config.chroma_length + self.text_positions if self._reads_melody else 0)

    @cached_property
    def text_tokenizer(self) -> Any:
        tokenizer, known = from_hub(AutoTokenizer, base_of(self.path), _KIND), self.config.text_encoder.vocab_size
        if lacks_words(tokenizer, known):
            raise ConfigError(
                f"Model `{self.path}`: its tokenizer knows {len(tokenizer)} tokens, and its text encoder {known}. Copy the"
                " tokenizer's files (tokenizer.json) into the folder, or name another."
            )
        return tokenizer

    def prompt_positions(self, prompts: Sequence[PromptLike | None]) -> int:
        self._refuse(prompts)
        return 0  # the decoder attends to the text, or reads it at reserved positions

    def problems_of_prompts(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        """See :meth:`Generator.problems_of_prompts`: a prompt may need a melody; a negative prompt never does."""
        return self._problems_of(prompts, self.melody)

    def _problems_of(self, prompts: Sequence[PromptLike | None], melody: Melody) -> list[Problem]:
        found = []
        for prompt in map(_whole, prompts):
            found += problems_of_prompt(prompt, self._reads_melody, melody)
            if prompt.text and self._reads_melody:
                found += problems_of_text(prompt.text, self.text_tokenizer, self.text_positions)
        return list(dict.fromkeys(found))

    def _refuse(self, prompts: Sequence[PromptLike | None]) -> None:
        if found := self._problems_of(prompts, "optional"):
            raise ConfigError(found)

    # Weights

    def load(self) -> Self:
        if not self.loaded:
            base = base_of(self.path)
            whole = self._load_whole(self.path)
            self.model = whole.decoder.to(DTYPES[self.dtype])
            # An attribute that no module registers: see Shared.
            text_positions = self.text_positions if self._reads_melody else None
            self.shared = Shared(whole, self.text_tokenizer, resolve(base), text_positions)
            if self.lora is not None:
                self.lora.inject(self.model)
            use_products(self.model)
            self.eval()
        return self

    def load_weights(self, folder: str) -> None:
        if self.lora is not None:
            fill(self.model, read_adapter(folder, _DECODER), folder)
            return
        whole = self._load_whole(folder)
        state = whole.decoder.state_dict()
        check_fit(self.model, state, folder, self.path)
        if differing := self.shared.differences(whole):
            raise ConfigError(
                f"Weights of `{folder}`: expected the text encoder and codec of `{self.path}`, which stay as they are, but"
                f" found others: {'; '.join(differing[:8])}. Only decoders of one model can be exchanged."
            )
        self.model.load_state_dict(state)

    def _load_whole(self, path: str) -> Any:
        base = base_of(path)
        found = from_hub(AutoConfig, base, _KIND).model_type
        if found != self.config.model_type:
            raise ConfigError(f"Model `{path}`: expected model_type {self.config.model_type}, but got {found}.")
        whole = network_of(MODELS[found], base, _KIND, dtype=torch.float32)
        if is_adapter(path):
            add_adapter(whole.decoder, read_adapter(path, _DECODER, self.dial), path)
        return whole

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        longest = int(TRAINED_SECONDS * self.frame_rate) + max(self.delays) + 1
        longest = min(longest, self.max_positions - (self.reserved_positions - max(self.delays)))
        if self.lora is not None:
            save_adapter(self.model, self.path, folder, prefix=_DECODER)
            self.shared.generation_config(longest).save_pretrained(folder)
            return
        copy_profile(self.path, folder)
        self.shared.save(self.model, folder, longest)

    # Prompts

    def encode(self, prompts: Sequence[PromptLike | None]) -> Encoded:
        self._refuse(prompts)
        shared = self.shared.to(self.device)
        rows = [shared.condition_SD(_whole(prompt)).to(self.model.dtype) for prompt in prompts]
        condition_BSD = pad_sequence(rows, batch_first=True)
        length_B = torch.tensor([len(row_SD) for row_SD in rows], device=self.device)
        mask_BS = torch.arange(condition_BSD.shape[1], device=self.device) < length_B[:, None]
        return Encoded({"condition": condition_BSD, "mask": mask_BS.long()})

    # Predictions

    def _predict(self, tokens_NKT: Tensor, condition: dict[str, Tensor], cache: Any = None) -> Predictions:
        """Run the decoder over new tokens; predictions after each of them."""
        inputs: dict[str, Any] = {}
        if self._reads_melody:
            if cache is None or not cache.get_seq_length():  # in front of the sound; already in a cache that has begun
                inputs["encoder_hidden_states"] = condition["condition"]
        elif condition:  # the null condition is left out: its values are zeros, and there is no bias
            inputs = {"encoder_hidden_states": condition["condition"], "encoder_attention_mask": condition["mask"]}
        inputs |= {"input_ids": tokens_NKT.flatten(0, 1), self.cache_argument: cache, "use_cache": cache is not None}
        num_new = tokens_NKT.shape[-1]
        # Kept apart, not stacked: a stack would copy all heads at every step.
        head = Head.of(self.model.lm_heads)
        return HiddenStates(self.model.model(**inputs).last_hidden_state[:, -num_new:], head)

    def _begin(self, num_rows: int) -> Tensor:
        """The position before the first one, ``[N, K, 1]``."""
        return torch.full((num_rows, self.num_codebooks, 1), self.pad_token, device=self.device)

    def prefill(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[DecodingState, Predictions]:
        # The keys and values of the text are computed here, once per prompt, and copied for its group.
        encoded = self.encode(prompts).tensors
        own = growing_cache(self.model.config)
        cache = own if self._reads_melody else EncoderDecoderCache(own, DynamicCache(config=self.model.config))
        first = self._predict(self._begin(len(prompts)), encoded, cache)
        state = DecodingState(cache, encoded)
        state.repeat_(repeats)
        return state, first.repeat(repeats)

    def step(self, state: DecodingState, tokens_NK: Tensor) -> tuple[DecodingState, Predictions]:
        return state, self._predict(tokens_NK[..., None], state.tensors, state.cache)

    def predictions(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        # Feed the pad token outside the delay pattern, as in training; stored values there are arbitrary.
        inputs_NKT = torch.where(mask_NKT, tokens_NKT, self.pad_token)[..., :-1]
        repeats = len(tokens_NKT) // len(prompts)
        if self._reads_melody and repeats > 1:  # the conditions are as long as the sound: read once per group
            state, first = self.prefill(prompts, repeats)
            return first.join(self._predict(inputs_NKT, {}, state.cache)) if inputs_NKT.shape[-1] else first
        inputs_NKT = pad(inputs_NKT, (1, 0), value=self.pad_token)
        # Without a prompt the text adds zeros, and is left out. In training it stays: each process must have a gradient for
        # every parameter, if only zeros.
        if (
            not self._reads_melody
            and not torch.is_grad_enabled()
            and not any(_whole(prompt).text for prompt in prompts)
        ):
            return self._predict(inputs_NKT, {})
        return self._predict(inputs_NKT, self.encode(prompts).repeat_interleave(repeats).tensors)

    def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[Waveform]:
        return self.shared.to(self.device).sound(undelayed(tokens_NKT, self.delays))


def _whole(prompt: PromptLike | None) -> Prompt:
    """A dropped prompt is the empty one: both are the null condition."""
    return Prompt.of(prompt or "")
