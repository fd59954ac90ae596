"""Dia as a generator: speech of two voices, from a byte-level text encoder and a decoder with nine codebooks.

Shapes: B prompts, N rows (B x G samples), K codebooks, T positions, F frames, S bytes of text, V vocabulary, D width, L samples
of sound. Tokens live in the delayed layout of :mod:`cfg_distill.generators.delay`; Dia's delays are 0, 8, 9, ..., 15.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer, DiaFeatureExtractor, DiaForConditionalGeneration, DiaProcessor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from cfg_distill.audio import Waveform
from cfg_distill.errors import ConfigError, Context, Problem, PromptProblem
from cfg_distill.folders import base_of, from_hub
from cfg_distill.folders.profile import copy_profile
from cfg_distill.generators.base import DTYPES, DecodingState, DTypeName, Encoded, Generator
from cfg_distill.generators.codec import Codec
from cfg_distill.generators.delay import undelayed
from cfg_distill.generators.growing_cache import growing_cache
from cfg_distill.generators.linear import use_products
from cfg_distill.generators.lora import LoRA, save_adapter
from cfg_distill.generators.networks import adapted_network
from cfg_distill.generators.predictions import NEVER, Head, HiddenStates, Predictions
from cfg_distill.prompt import Prompt, PromptLike

_KIND = "a Dia"


class Dia(Generator):
    """A generator over ``DiaForConditionalGeneration``. The codec is frozen, and student and teacher share it.

    Codebook 0 may draw the end token, and no codebook draws the special tokens behind it. So the vocabulary ends there, as in
    transformers' ``generate``. Two habits of ``generate`` are not the model's distribution and are left out: it draws the end
    token if and only if that is the likeliest token, and under guidance it draws from the UNGUIDED distribution, cut to the
    likeliest tokens of the guided one. A ``guidance_scale`` of s there is a scale of 1 + s here.

    Args:
        path: a model folder or a hub name. Its processor names the codec. An adapter folder stands for its base with the
            adapter added.
        dtype: the dtype of the weights; the codec stays float32. Training takes float32, or ``lora``.
        lora: train an adapter of text encoder and decoder instead of all weights; the teacher then shares the base's.
    """

    shortest_prompt = 0
    conditions = ()
    model: Any  # transformers' own classes type their call too loosely to check against

    def __init__(
        self,
        path: str = "nari-labs/Dia-1.6B-0626",
        dtype: DTypeName = "float32",
        lora: LoRA | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.dtype = dtype
        self.lora = lora

    # Settings, known before weights are loaded

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = self.problems_of_kind(_KIND, ["dia"], lambda: self.extractor)
        return found or self.problems_of_lora(context, self._without_weights)

    def _without_weights(self) -> Any:
        with torch.device("meta"):
            return DiaForConditionalGeneration(self.config).model

    @cached_property
    def config(self) -> Any:
        return from_hub(AutoConfig, base_of(self.path), _KIND)

    @cached_property
    def extractor(self) -> Any:
        return from_hub(DiaFeatureExtractor, base_of(self.path), _KIND)

    @property
    def delays(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.config.delay_pattern)

    @property
    def end_token(self) -> int:
        return self.config.decoder_config.eos_token_id

    @property
    def end_tokens(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.end_token,)

    @property
    def pad_token(self) -> int:  # type: ignore[override]
        return self.config.decoder_config.pad_token_id

    @property
    def sample_rate(self) -> int:  # type: ignore[override]
        return self.extractor.sampling_rate

    @property
    def frame_rate(self) -> float:  # type: ignore[override]
        return self.extractor.sampling_rate / self.extractor.hop_length

    @property
    def max_positions(self) -> int:
        return self.config.decoder_config.max_position_embeddings

    @cached_property
    def text_tokenizer(self) -> Any:
        return from_hub(AutoTokenizer, base_of(self.path), _KIND)

    def prompt_positions(self, prompts: Sequence[PromptLike | None]) -> int:
        self._rows(prompts)
        return 0  # the text has an encoder of its own

    def problems_of_prompts(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        """See :meth:`Generator.problems_of_prompts`: the text encoder has a longest text, in bytes."""
        try:
            self._rows(prompts)
        except ConfigError as error:
            return error.problems
        return super().problems_of_prompts(prompts)

    def _rows(self, prompts: Sequence[PromptLike | None]) -> list[list[int]]:
        """The bytes of each prompt; one byte 0 for none."""
        limit = self.config.encoder_config.max_position_embeddings
        texts = [Prompt.of(prompt or "").text for prompt in prompts]
        rows = [self.text_tokenizer(text)["input_ids"] if text else [0] for text in texts]
        if wrong := [
            PromptProblem.of(text, f"takes more bytes than the {limit} that `{self.path}` reads. Shorten it.")
            for text, row in zip(texts, rows, strict=True)
            if len(row) > limit
        ]:
            raise ConfigError(wrong)
        return rows

    # Weights

    def load(self) -> Self:
        if not self.loaded:
            self.model = self._load_model(self.path)
            if self.lora is not None:
                # The head gets no adapter, since the losses read its weights. transformers does not name it as a head.
                self.model.requires_grad_(False)
                self.lora.inject(self.model.model)
            use_products(self.model)
            self.eval()
            self.processor = from_hub(DiaProcessor, base_of(self.path), _KIND)
            # In an object that no module registers: no checkpoint, average or optimiser sees the codec.
            self.sound = Codec(self.processor.audio_tokenizer.float())
        return self

    def _load_model(self, path: str) -> Any:
        return adapted_network(DiaForConditionalGeneration, path, _KIND, DTYPES[self.dtype], self.dial)

    def load_weights(self, folder: str) -> None:
        self.take_weights(folder, lambda: self._load_model(folder).state_dict())

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if self.lora is not None:
            save_adapter(self.model, self.path, folder)
        else:
            copy_profile(self.path, folder)
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
        # A distilled model needs no guidance, and no filter that was tuned for guidance.
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, guidance_scale=1.0)
        settings.save_pretrained(folder)

    # Prompts

    def encode(self, prompts: Sequence[PromptLike | None]) -> Encoded:
        """Bytes of text. The null condition is one byte 0.

        Dia's own null condition has a zero for each byte of the prompt, which is the same: positions of equal content attend
        to equal values, and the decoder attends to the text without positions.
        """
        rows = self._rows(prompts)
        length_B = torch.tensor([len(row) for row in rows], device=self.device)
        ids_BS = pad_sequence([torch.tensor(row, device=self.device) for row in rows], batch_first=True)
        mask_BS = torch.arange(ids_BS.shape[1], device=self.device) < length_B[:, None]
        return Encoded({"input_ids": ids_BS, "mask": mask_BS.long()})

    def _read(self, prompts: Sequence[PromptLike | None]) -> Encoded:
        """The prompts through the text encoder, each once."""
        encoded = self.encode(prompts).tensors
        hidden_BSD = self.model.model.encoder(encoded["input_ids"], encoded["mask"]).last_hidden_state
        return Encoded({"hidden": hidden_BSD, "mask": encoded["mask"]})

    # Predictions

    def _predict(self, inputs_NKT: Tensor, read: dict[str, Tensor], cache: Any = None) -> Predictions:
        """Run the decoder over new inputs; predictions after each of them."""
        states_NTD = self.model.model.decoder(
            input_ids=inputs_NKT.transpose(1, 2).contiguous(),
            encoder_hidden_states=read["hidden"],
            encoder_attention_mask=read["mask"],
            **{self.cache_argument: cache},
        ).last_hidden_state
        num_drawn, head = self.end_token + 1, self.model.logits_dense
        bias_KV = torch.zeros(self.num_codebooks, num_drawn, dtype=states_NTD.dtype, device=self.device)
        bias_KV[1:, self.end_token] = NEVER
        return HiddenStates(
            states_NTD, Head(head.weight.unflatten(0, (self.num_codebooks, -1))[:, :num_drawn], bias_KV)
        )

    def _begin(self, num_rows: int) -> Tensor:
        """The position before the first one, ``[N, K, 1]``."""
        begin = self.config.decoder_config.bos_token_id
        return torch.full((num_rows, self.num_codebooks, 1), begin, device=self.device)

    def _inputs(self, tokens_NKT: Tensor, exists_NKT: Tensor, end_N: Tensor, start: int = 0) -> Tensor:
        """The decoder's inputs: tokens, and special tokens in cells that do not exist, as in transformers' ``generate``.

        For delays 0, 2, 3 and the end at frame 3 (B begin, E end, P pad; digits are frames)::

            codebook 0   0 1 2 E P P P
            codebook 1   B B 0 1 2 E P
            codebook 2   B B B 0 1 2 E

        A clip that was cut has the end token at its end, too.

        Args:
            tokens_NKT: tokens; arbitrary in cells that do not exist.
            exists_NKT: which cells exist.
            end_N: the first frame without sound.
            start: the first position of the tokens.
        """
        position_T = torch.arange(start, start + tokens_NKT.shape[-1], device=tokens_NKT.device)
        frame_KT = position_T - torch.tensor(self.delays, device=tokens_NKT.device)[:, None]
        special_NKT = torch.where(frame_KT == end_N[:, None, None], self.end_token, self.pad_token)
        special_NKT = torch.where(frame_KT < 0, self.config.decoder_config.bos_token_id, special_NKT)
        return torch.where(exists_NKT, tokens_NKT, special_NKT)

    def prefill(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[DecodingState, Predictions]:
        # The keys and values of the text are computed here, once per prompt, and copied for its group.
        config = self.config.decoder_config
        cache = EncoderDecoderCache(growing_cache(config), DynamicCache(config=config))
        read = self._read(prompts)
        first = self._predict(self._begin(len(prompts)), read.tensors, cache)
        unknown_B = torch.full((len(prompts),), torch.iinfo(torch.long).max, device=self.device)
        state = DecodingState(cache, read.tensors | {"end": unknown_B})
        state.repeat_(repeats)
        return state, first.repeat(repeats)

    def step(self, state: DecodingState, tokens_NK: Tensor) -> tuple[DecodingState, Predictions]:
        position = state.cache.get_seq_length() - 1  # the begin position lies before the first
        exists_NK = tokens_NK != self.pad_token
        over_N = ~exists_NK[:, 0] | (tokens_NK[:, 0] == self.end_token)
        end_N = torch.where(over_N, state.tensors["end"].clamp(max=position), state.tensors["end"])
        inputs_NK1 = self._inputs(tokens_NK[..., None], exists_NK[..., None], end_N, position)
        state = DecodingState(state.cache, state.tensors | {"end": end_N})
        return state, self._predict(inputs_NK1, state.tensors, state.cache)

    def predictions(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        over_NT = ~mask_NKT[:, 0] | (tokens_NKT[:, 0] == self.end_token)
        # The first position that is over, or the length where there is none.
        end_N = pad(over_NT.int(), (0, 1), value=1).argmax(-1)
        inputs_NKT = self._inputs(tokens_NKT, mask_NKT, end_N)[..., :-1]
        inputs_NKT = torch.cat([self._begin(len(tokens_NKT)), inputs_NKT], dim=-1)
        read = self._read(prompts).repeat_interleave(len(tokens_NKT) // len(prompts))
        return self._predict(inputs_NKT, read.tensors)

    def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[Waveform]:
        frames_NKF = undelayed(tokens_NKT, self.delays)
        whole_NF = undelayed(mask_NKT, self.delays).all(1)  # the frame of the end token has a cell in codebook 0 only
        return [
            Waveform(self.sound.of(frames_KF[:, whole_F]), self.sample_rate)
            for frames_KF, whole_F in zip(frames_NKF, whole_NF, strict=True)
        ]
