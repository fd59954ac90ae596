"""CSM as a generator: speech, from a backbone with one position per frame and a depth decoder over the codebooks of a frame.

Shapes: B prompts, N rows (B x G samples), K codebooks, J of them, T frames, S positions, M frames that exist, V codes, D width.

    backbone        text -> frame 0 -> frame 1 -> ...             a frame enters as the sum of its codebooks' embeddings
                              | state: codebook 0, and the first input of the depth decoder
    depth decoder             state -> token 0 -> token 1 -> ...  predicts codebooks 1, 2, ..., each with a head of its own
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, CsmForConditionalGeneration, CsmProcessor, GenerationConfig

from cfg_distill.audio import Waveform
from cfg_distill.errors import Context, Problem
from cfg_distill.folders import base_of, from_hub
from cfg_distill.folders.profile import copy_profile
from cfg_distill.generators.base import DTYPES, DecodingState, DTypeName, Encoded, Generator
from cfg_distill.generators.codec import Codec
from cfg_distill.generators.growing_cache import growing_cache
from cfg_distill.generators.linear import use_products
from cfg_distill.generators.lora import LoRA, save_adapter
from cfg_distill.generators.networks import adapted_network
from cfg_distill.generators.predictions import DepthStates, Head, HiddenStates, Predictions
from cfg_distill.prompt import Prompt, PromptLike

_KIND = "a CSM"
_CODEC, _DEPTH = "codec_model", "depth_decoder"
_SPEAKER = re.compile(r"\[\d+\]")


@dataclass
class _FrameState(DecodingState):
    """The state of decoding; within a frame, the depth decoder's cache too."""

    depth: Any = None


class CSM(Generator):
    """A generator over ``CsmForConditionalGeneration``. The codec is frozen, and student and teacher share it.

    Backbone and depth decoder are trained. Under guidance each branch runs both: the logits of every codebook are mixed, given
    the same tokens. CSM was trained without dropped prompts: its null condition is the empty text, a prompt without words.

    A frame ends a clip if all its codebooks but the last hold the end token, as in transformers' ``generate``. Only codes that
    the codec has can be drawn. The depth decoder takes K positions per frame. Scoring takes most of its memory there;
    ``model.micro_batch`` lowers it.

    Args:
        path: a model folder or a hub name. An adapter folder stands for its base with the adapter added.
        dtype: the dtype of the weights; the codec stays float32. Training takes float32, or ``lora``.
        speaker: the speaker of prompts that name none; a prompt names one as in ``[1]Hello``.
        lora: train an adapter of backbone and depth decoder instead of all weights; the teacher then shares the base's.
    """

    conditions = ()
    model: Any  # transformers' own classes type their call too loosely to check against

    def __init__(
        self, path: str = "sesame/csm-1b", dtype: DTypeName = "float32", speaker: int = 0, lora: LoRA | None = None
    ) -> None:
        super().__init__()
        self.path = path
        self.dtype = dtype
        self.speaker = speaker
        self.lora = lora

    # Settings, known before weights are loaded

    def problems(self, context: Context = Context()) -> list[Problem]:
        if found := self.problems_of_kind(_KIND, ["csm"], lambda: self.processor):
            return found
        found = self._problems_of_codebooks()
        if self.speaker < 0:
            found.append(Problem("speaker", f"expected a number of at least 0, but got {self.speaker}."))
        return found + self.problems_of_lora(context, self._without_weights)

    def _problems_of_codebooks(self) -> list[Problem]:
        """Backbone, depth decoder and codec must speak of the same codebooks: the sound would be wrong, and nothing fail."""
        own, depth, codec = self.config, self.config.depth_decoder_config, self.config.codec_config
        found = []
        numbers = (own.num_codebooks, depth.num_codebooks, codec.num_quantizers)
        if len(set(numbers)) > 1:
            found.append(
                "expected as many codebooks in backbone, depth decoder and codec, but"
                f" `{self.path}` has {', '.join(map(str, numbers))}"
            )
        sizes = (own.vocab_size, depth.vocab_size)
        if len(set(sizes)) > 1 or min(sizes) < codec.codebook_size:
            found.append(
                f"expected the {codec.codebook_size} codes of the codec in equal vocabularies of backbone and depth decoder,"
                f" but those of `{self.path}` have {sizes[0]} and {sizes[1]}"
            )
        return [Problem("path", f"{text}. Mend its config.json, or copy the model again.") for text in found]

    def _without_weights(self) -> Any:
        with torch.device("meta"):
            model = CsmForConditionalGeneration(self.config)
        del model.codec_model
        return model

    @cached_property
    def config(self) -> Any:
        return from_hub(AutoConfig, base_of(self.path), _KIND)

    @cached_property
    def processor(self) -> Any:
        return from_hub(CsmProcessor, base_of(self.path), _KIND)

    @property
    def delays(self) -> tuple[int, ...]:  # type: ignore[override]
        return (0,) * self.config.num_codebooks

    @property
    def end_tokens(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.config.codebook_eos_token_id,)

    @property
    def end_codebooks(self) -> int:  # type: ignore[override]
        return self.config.num_codebooks - 1

    @property
    def pad_token(self) -> int:  # type: ignore[override]
        return self.config.codebook_pad_token_id

    @property
    def sample_rate(self) -> int:  # type: ignore[override]
        return self.config.codec_config.sampling_rate

    @property
    def frame_rate(self) -> float:  # type: ignore[override]
        return self.config.codec_config.frame_rate

    @property
    def max_positions(self) -> int:
        return self.config.max_position_embeddings

    # Weights

    def load(self) -> Self:
        if not self.loaded:
            whole = self._load_whole(self.path)
            # In an object that no module registers: no checkpoint, average or optimiser sees the codec.
            self.sound = Codec(whole.codec_model)
            del whole.codec_model
            self.model = whole.to(DTYPES[self.dtype])
            if self.lora is not None:
                self.lora.inject(self.model)
            use_products(self.model)
            self.eval()
        return self

    def _load_whole(self, path: str) -> Any:
        return adapted_network(CsmForConditionalGeneration, path, _KIND, torch.float32, self.dial)

    def load_weights(self, folder: str) -> None:
        def read() -> dict[str, Tensor]:
            whole = self._load_whole(folder)
            del whole.codec_model
            return whole.state_dict()

        self.take_weights(folder, read)

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        whole = self._whole()
        if self.lora is not None:
            # The layers are found in the whole model: the codec has some of the same names.
            save_adapter(whole, self.path, folder)
            depth = whole.depth_decoder.generation_config.to_diff_dict()
            own = whole.generation_config.to_diff_dict()
            GenerationConfig(**own, **{f"{_DEPTH}_{name}": value for name, value in depth.items()}).save_pretrained(
                folder
            )
            return
        copy_profile(self.path, folder)
        whole.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _whole(self) -> Any:
        """The model with its codec and with guidance and filters off, in a copy that shares all tensors."""
        depth, whole = copy.copy(self.model.depth_decoder), copy.copy(self.model)
        whole._modules = {**self.model._modules, _DEPTH: depth, _CODEC: self.sound.model}
        for part in (depth, whole):
            known = part.generation_config.to_diff_dict()
            # What was made up of the config, and says so, would be made up again.
            known = {name: value for name, value in known.items() if not name.startswith("_")}
            part.generation_config = GenerationConfig(**{**known, **_NEUTRAL})
        return whole

    # Prompts

    def _text(self, given: PromptLike | None) -> str:
        text = Prompt.of(given or "").text
        return text if not text or _SPEAKER.match(text) else f"[{self.speaker}]{text}"

    def encode(self, prompts: Sequence[PromptLike | None]) -> Encoded:
        """Tokens of the text between a begin and an end token, padded on the left."""
        rows = [self.processor.tokenizer(self._text(prompt))["input_ids"] for prompt in prompts]
        longest = max(map(len, rows))
        ids_BS = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=self.device)
        mask_BS = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.device)
        return Encoded({"input_ids": ids_BS, "mask": mask_BS})

    def prompt_positions(self, prompts: Sequence[PromptLike | None]) -> int:
        return max(len(self.processor.tokenizer(self._text(prompt))["input_ids"]) for prompt in prompts)

    # Predictions

    def _head(self, k: int) -> Tensor:
        """The head of codebook k, cut to the codes that the codec has, ``[V, D]``."""
        weight_VD = self.model.lm_head.weight if k == 0 else self.model.depth_decoder.codebooks_head.weight[k - 1].T
        return weight_VD[: self.config.codec_config.codebook_size]

    def _all_heads(self) -> Head:
        num_codes = self.config.codec_config.codebook_size
        # Taken apart at once: the gradient of each slice by itself would be as large as all of them.
        deeper = [weight_DV.T[:num_codes] for weight_DV in self.model.depth_decoder.codebooks_head.weight.unbind()]
        return Head([self._head(0), *deeper])

    def _backbone(self, embedded_NSD: Tensor, mask_NS: Tensor, cache: Any) -> Tensor:
        """Run the backbone over new positions; the state at each of them, ``[N, S, D]``."""
        position_NS = (mask_NS.cumsum(-1) - 1).clamp(min=0)[:, -embedded_NSD.shape[1] :]
        return self.model.backbone_model(
            inputs_embeds=embedded_NSD,
            attention_mask=mask_NS,
            position_ids=position_NS,
            **{self.cache_argument: cache},
            use_cache=True,
        ).last_hidden_state

    def _depth(self, tokens_MJ: Tensor, state_MD: Tensor | None, cache: Any = None) -> Tensor:
        """Run the depth decoder over new tokens of a frame; the state behind each of them, ``[M, J, D]``.

        Args:
            tokens_MJ: the tokens of the frame that are new.
            state_MD: the backbone's state, where the frame begins: it comes first, and has no prediction.
            cache: of the earlier tokens.
        """
        if state_MD is not None:
            tokens_MJ = pad(tokens_MJ, (1, 0))  # the state takes this place
        states_MJD = self.model.depth_decoder.model(
            input_ids=tokens_MJ,
            backbone_last_hidden_state=state_MD,
            **{self.cache_argument: cache},
            use_cache=cache is not None,
        ).last_hidden_state
        return states_MJD if state_MD is None else states_MJD[:, 1:]

    def _begin(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[_FrameState, Tensor]:
        """Read each prompt once; the state of its group, and the backbone's state before the first frame, ``[N, 1, D]``."""
        encoded = self.encode(prompts).tensors
        cache = growing_cache(self.model.config)
        states_BSD = self._backbone(self.model.embed_text_tokens(encoded["input_ids"]), encoded["mask"], cache)
        state = _FrameState(cache, {"mask": encoded["mask"], "frame": states_BSD[:, -1]})
        state.repeat_(repeats)
        return state, state.tensors["frame"][:, None]

    def _first(self, state_N1D: Tensor) -> Predictions:
        return HiddenStates(state_N1D, Head([self._head(0)]))

    def prefill(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[DecodingState, Predictions]:
        state, first_N1D = self._begin(prompts, repeats)
        return state, self._first(first_N1D)

    def step(self, state: DecodingState, tokens_NK: Tensor) -> tuple[DecodingState, Predictions]:
        mask_NS = pad(state.tensors["mask"], (0, 1), value=1)
        next_N1D = self._backbone(self.model.backbone_model.embed_tokens(tokens_NK[:, None]), mask_NS, state.cache)
        return _FrameState(state.cache, {"mask": mask_NS, "frame": next_N1D[:, 0]}), self._first(next_N1D)

    def deepen(self, state: DecodingState, tokens_NJ: Tensor) -> tuple[DecodingState, Predictions]:
        assert isinstance(state, _FrameState)
        num_before = tokens_NJ.shape[1]
        begins = num_before == 1
        depth = growing_cache(self.config.depth_decoder_config) if begins else state.depth
        states_NJD = self._depth(tokens_NJ[:, -1:], state.tensors["frame"] if begins else None, depth)
        found = HiddenStates(states_NJD[:, -1:], Head([self._head(num_before)]))
        return _FrameState(state.cache, state.tensors, depth), found

    def predictions(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        frames_NTK = torch.where(mask_NKT, tokens_NKT, self.pad_token).transpose(1, 2)
        num_rows, num_frames = frames_NTK.shape[:2]
        state, states_NTD = self._begin(prompts, num_rows // len(prompts))
        if num_frames > 1:  # the state in front of a frame reads the frames before it: the last one is never an input
            embedded_NTD = self.model.backbone_model.embed_tokens(frames_NTK[:, :-1])
            mask_NS = pad(state.tensors["mask"], (0, num_frames - 1), value=1)
            states_NTD = torch.cat([states_NTD, self._backbone(embedded_NTD, mask_NS, state.cache)], dim=1)
        # The depth decoder runs on the frames that exist; elsewhere zeros stand.
        (frame_M,) = mask_NKT[:, 0].flatten().nonzero(as_tuple=True)
        tokens_MK = frames_NTK.flatten(0, 1)[frame_M]
        depth_MJD = self._depth(tokens_MK[:, :-1], states_NTD.flatten(0, 1)[frame_M])
        empty = depth_MJD.new_zeros(num_rows * num_frames, *depth_MJD.shape[1:])
        depth_NTJD = empty.index_copy(0, frame_M, depth_MJD).unflatten(0, (num_rows, num_frames))
        return DepthStates([states_NTD, *depth_NTJD.unbind(2)], self._all_heads())

    def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[Waveform]:
        return [  # the last codebook has no cell in the frame that ends the clip
            Waveform(self.sound.of(tokens_KT[:, mask_KT.all(0)]), self.sample_rate)
            for tokens_KT, mask_KT in zip(tokens_NKT, mask_NKT, strict=True)
        ]


_NEUTRAL = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""Of backbone and depth decoder in an export: the model's own distribution."""
