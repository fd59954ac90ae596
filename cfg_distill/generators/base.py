"""The protocol of a generator. Shapes: N rows (B prompts x G samples), K codebooks, T generated positions, V vocabulary."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from cfg_distill.errors import ConfigError, Context, Problem, PromptProblem, problems_of
from cfg_distill.folders import problems_of_folder
from cfg_distill.folders.adapters import Adapter
from cfg_distill.generators.growing_cache import cache_argument
from cfg_distill.generators.lora import (
    LoRA,
    adapter_of,
    fill,
    merge_adapter,
    problems_of_base,
    read_adapter,
    standing_in,
    without_adapter,
)
from cfg_distill.generators.networks import check_fit, problems_of_type, wrong_type
from cfg_distill.generators.predictions import Predictions
from cfg_distill.generators.predictor import AcceptsScored
from cfg_distill.guidance import Guidance
from cfg_distill.prompt import Prompt, PromptLike

DTypeName: TypeAlias = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes of a model's weights by their names in a recipe."""


@dataclass
class Encoded:
    """Prompts ready for a generator: tensors that share their first dimension, one row per prompt."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def repeat_interleave(self, repeats: int) -> Encoded:
        """Each row ``repeats`` times, neighbours together: prompts to groups."""
        return Encoded({name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()})


@dataclass
class DecodingState:
    """The state of incremental decoding: the key-value cache, and what else the generator needs at the next step."""

    cache: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def repeat_(self, repeats: int) -> None:
        """Repeat each row, in place: the prompt is computed once, its cache serves the whole group."""
        self.cache.batch_repeat_interleave(repeats)
        self.tensors = {name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()}

    def keep_(self, rows_M: Tensor) -> None:
        """Keep only some rows, by their indices, in place."""
        self.cache.batch_select_indices(rows_M)
        self.tensors = {name: tensor[rows_M] for name, tensor in self.tensors.items()}

    def repeat_interleave(self, repeats: int) -> DecodingState:
        """The name in version 0.1 of :meth:`repeat_`. To go after the next release."""
        warnings.warn("`DecodingState.repeat_interleave` is `repeat_` now.", DeprecationWarning, stacklevel=2)
        self.repeat_(repeats)
        return self

    def keep(self, rows_M: Tensor) -> DecodingState:
        """The name in version 0.1 of :meth:`keep_`. To go after the next release."""
        warnings.warn("`DecodingState.keep` is `keep_` now.", DeprecationWarning, stacklevel=2)
        self.keep_(rows_M)
        return self


class Generator(AcceptsScored, nn.Module, ABC):
    """An adapter over a transformers model, never a fork of it. Constructing one loads no weights; :meth:`load` does.

    Attributes:
        model: the transformers network; set by :meth:`load`.
        delays: the delay of each codebook in positions, the first 0; ``(0,)`` for text.
        end_tokens: the tokens (of codebook 0) after any of which a sample is finished; none when all have the full length.
        end_codebooks: the number of codebooks that must all hold an end token in the last frame; 1, codebook 0, in most models.
            Where there are more, none of them has a delay.
        pad_token: fills the cells that do not exist: behind the end token, and before a delayed codebook begins.
        sample_rate: of the waveforms that :meth:`decode` returns, in Hz; None for text.
        frame_rate: frames per second of sound; None for text.
        path: the folder or hub name of the start model.
        config: the config of transformers, for :meth:`problems_of_kind`.
        dtype: the dtype of the weights, by its name. Training takes float32, or :attr:`lora`.
        conditions: the names of the conditions that prompts may carry; None where nobody says, and then all may be.
        takes_system: whether prompts may have a system message, as the condition ``system``; known before weights are loaded.
        takes_tail: whether prompts may have the condition ``tail``, how many of their last tokens count; known likewise.
        shortest_prompt: positions of :attr:`max_positions` that the shortest prompt takes; 0 where prompts take none.
        lora: the adapter that is trained, with everything else frozen; None when all weights are trained.
        dial: what the change of an adapter, named by :attr:`path`, is multiplied by when it is loaded. Of one that was trained
            with a dial, 0 is no guidance and 1 all of it.
        adapter_prefix: the prefix of :attr:`model`'s parameters in the full checkpoint that an adapter folder refers to
            (``decoder.``); empty if :attr:`model` is all of it.
    """

    model: nn.Module
    path: str
    config: Any
    dtype: DTypeName = "float32"
    lora: LoRA | None = None
    dial: float = 1.0
    adapter_prefix: str = ""
    delays: tuple[int, ...] = (0,)
    end_tokens: tuple[int, ...] = ()
    end_codebooks: int = 1
    pad_token: int = 0
    sample_rate: int | None = None
    frame_rate: float | None = None
    conditions: tuple[str, ...] | None = None
    takes_system: bool = False
    takes_tail: bool = False
    shortest_prompt: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.training = False  # torch's default would switch dropout on in a script that only loads and calls

    @property
    def parts(self) -> tuple[Generator, ...]:
        """See :attr:`Predictor.parts`."""
        return (self,)

    @property
    def passes(self) -> int:
        """See :attr:`Predictor.passes`."""
        return 1

    @property
    def layout(self) -> dict[str, Any]:
        """What tokens mean and where they stand, in words and values; known before weights are loaded.

        Generators can be mixed where all of it is equal. Override to add what tells two vocabularies apart.
        """
        return {
            "codebooks": self.delays,
            "end tokens": self.end_tokens,
            "pad token": self.pad_token,
            "rate of sound": (self.sample_rate, self.frame_rate),
        }

    @property
    def loaded(self) -> bool:
        """Whether :meth:`load` has made :attr:`model`."""
        return "model" in self._modules

    @cached_property
    def cache_argument(self) -> str:
        """The name by which :attr:`model` takes its key-value cache, and so do its parts; see :func:`cache_argument`."""
        return cache_argument(self.model)

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.delays)

    @abstractmethod
    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""

    def problems_of_kind(self, kind: str, types: Collection[str], read: Callable[[], object]) -> list[Problem]:
        """Why the folder is no model of a kind, or lacks what is read beside its config; found without loading weights.

        Args:
            kind: in words, such as ``a Dia``.
            types: the ``model_type`` of such models.
            read: reads the rest, where the type is right.
        """
        if found := problems_of_folder(self.path) or problems_of_type(self.path, kind, types):
            return [problem.under("path") for problem in found]
        try:
            if (own := self.config.model_type) in types:
                read()
                return []
        except ConfigError as error:
            return error.under("path")
        return [wrong_type(self.path, kind, types, own).under("path")]

    @abstractmethod
    def load(self) -> Self:
        """Load the weights, in eval mode; does nothing the second time.

        Raises:
            ConfigError: the folder or hub name cannot be loaded.
        """

    @abstractmethod
    def load_weights(self, folder: str) -> None:
        """Load the weights of another folder of the same architecture; a LoRA student loads an adapter of its base.

        Raises:
            ConfigError: names or shapes differ.
        """

    def take_weights(self, folder: str, read: Callable[[], Mapping[str, Tensor]]) -> None:
        """:meth:`load_weights`, where ``read`` reads all weights of the folder by the names of :attr:`model`."""
        if self.lora is not None:
            fill(self.model, read_adapter(folder, self.adapter_prefix), folder)
            return
        state = read()
        check_fit(self.model, state, folder, self.path)
        self.model.load_state_dict(state)

    def problems_of_start(self, folder: str) -> list[Problem]:
        """Why :meth:`load_weights` could not load the folder of ``model.start``, found without loading weights."""
        found = problems_of_folder(folder)
        if not found and self.lora is not None:
            found = self.problems_of_base(folder) or self.lora.problems_of_rank(folder)
        return [replace(problem, key=problem.key or "/model.start") for problem in found]

    def problems_of_base(self, folder: str) -> list[Problem]:
        """Why a folder is no adapter of this generator's base."""
        return problems_of_base(folder, self.path)

    def problems_of_lora(self, context: Context, network: Callable[[], nn.Module] | None) -> list[Problem]:
        """What is wrong with :attr:`lora`, where there is one.

        Args:
            context: see :meth:`problems`.
            network: makes the network without weights, to look for the layers' names; None where it cannot be made.
        """
        if self.lora is None:
            return []
        found = [problem.under("lora") for problem in self.lora.problems_on(self.path, network)]
        return problems_of(self.lora, context, under="lora") + found

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """Positions that the model can see, prompt included; None without a limit. Known before weights are loaded."""

    @property
    def reserved_positions(self) -> int:
        """Positions of :attr:`max_positions` that neither a prompt nor a frame can use: the longest delay.

        Override where the model needs more. Known before weights are loaded.
        """
        return max(self.delays)

    @property
    def longest_sample(self) -> int | None:
        """Frames or tokens of the longest sample of any prompt; None without a limit. Known before weights are loaded."""
        if self.max_positions is None:
            return None
        return self.max_positions - self.reserved_positions - self.shortest_prompt

    def problems_of_prompts(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        """Why there can be no samples of these prompts, found without loading weights.

        Override where a prompt can be wrong: too long for a text encoder, without the melody that it needs, and so on.
        """
        return problems_of_conditions(prompts, self.conditions)

    def prompt_positions(self, prompts: Sequence[PromptLike | None]) -> int:
        """Positions of :attr:`max_positions` that the longest of the prompts takes.

        Override where a prompt takes none, and where the number is known before weights are loaded.

        Raises:
            ConfigError: a prompt that the model cannot read.
        """
        return max(tensor.shape[-1] for tensor in self.encode(prompts).tensors.values())

    def negatives(self, prompts: Sequence[PromptLike | None], guidance: Guidance) -> list[PromptLike | None]:
        """The prompts of the negative branch under guidance: one for all rows, or one per prompt.

        Override where the model was trained to drop a part of a prompt, and not the whole.
        """
        return guidance.negatives(prompts)

    @abstractmethod
    def encode(self, prompts: Sequence[PromptLike | None]) -> Encoded:
        """Prompts as tensors on the model's device. None stands for the unconditional prompt.

        Raises:
            ConfigError: a prompt that the model cannot read.
        """

    @abstractmethod
    def prefill(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[DecodingState, Predictions]:
        """See :meth:`Predictor.prefill`."""

    @abstractmethod
    def step(self, state: DecodingState, tokens_NK: Tensor) -> tuple[DecodingState, Predictions]:
        """See :meth:`Predictor.step`."""

    def deepen(self, state: DecodingState, tokens_NJ: Tensor) -> tuple[DecodingState, Predictions]:
        """See :meth:`Predictor.deepen`. Override for a model with a depth decoder."""
        raise TypeError(f"`{type(self).__name__}` predicts all codebooks of a position at once.")

    def keep(self, state: DecodingState, rows_M: Tensor) -> DecodingState:
        """See :meth:`Predictor.keep`."""
        state.keep_(rows_M)
        return state

    @abstractmethod
    def predictions(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        """See :meth:`Predictor.predictions`."""

    def logits(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Tensor:
        """Logits at every generated position, ``[N, K, T, V]``; arbitrary at masked cells."""
        return self.predictions(prompts, tokens_NKT, mask_NKT).whole()

    @abstractmethod
    def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[Any]:
        """Turn tokens into N texts or waveforms."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write a plain Hugging Face folder that transformers alone loads, with guidance off in its settings.

        A LoRA student writes an adapter folder in peft's format.
        """

    def own_adapter(self) -> Adapter:
        """The adapter that is trained: its own tensors, not copies."""
        return adapter_of(self.model)

    def adapter_in(self, folder: str) -> Adapter:
        """The adapter of a folder, by the names of :attr:`model`.

        Raises:
            ConfigError: the folder is broken, or its adapter is of another base or changes other parts.
        """
        if problems := self.problems_of_base(folder):
            raise ConfigError(problems)
        return read_adapter(folder, self.adapter_prefix)

    def with_adapter(self, adapter: Adapter) -> AbstractContextManager[None]:
        """Put another adapter, of any rank, in the place of the own one until the context ends."""
        return standing_in(self.model, adapter)

    def frozen_copy(self) -> Self:
        """The teacher: a frozen copy. The teacher of a LoRA student is the base, on the student's own tensors."""
        model = copy.deepcopy(self.model) if self.lora is None else without_adapter(self.model)
        frozen = copy.copy(self)
        frozen.lora = None
        frozen.training = False
        # copy.copy shares the dict of submodules: the copy gets its own.
        frozen._modules = {"model": model.requires_grad_(False).eval()}
        return frozen

    def merge_adapter(self) -> Self:
        """Add the adapter to the weights: a generator without LoRA that samples as before."""
        if self.lora is not None:
            merge_adapter(self.model)
            self.lora = None
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def problems_of_conditions(prompts: Sequence[PromptLike], known: Sequence[str] | None) -> list[Problem]:
    """Conditions of prompts that a model does not read: a column of a table that would have no effect.

    Args:
        prompts: the prompts.
        known: the conditions that the model reads; None for any.
    """
    reads = f"It reads {', '.join(known)}." if known else "It reads none."
    return [
        PromptProblem.of(prompt, f"carries the condition `{name}`, which the model does not read. {reads} Remove it.")
        for prompt in map(Prompt.of, prompts)
        for name in sorted(prompt.conditions.keys() - set(known if known is not None else prompt.conditions))
    ]
