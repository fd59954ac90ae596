"""Any causal language model of transformers as a generator. Text, and whatever else is spelled as text (tunes)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    cache_utils,
)

from cfg_distill.errors import ITS_PROMPT, ConfigError, Context, Problem, PromptProblem
from cfg_distill.folders import base_of, from_hub, is_adapter, problems_of_folder, resolve
from cfg_distill.folders.profile import copy_profile
from cfg_distill.generators.base import DTYPES, DecodingState, DTypeName, Encoded, Generator
from cfg_distill.generators.growing_cache import growing_cache, takes_cache
from cfg_distill.generators.linear import is_linear, use_products
from cfg_distill.generators.lora import LoRA, save_adapter
from cfg_distill.generators.networks import adapted_network, causal_types, has_weights, problems_of_type
from cfg_distill.generators.predictions import Head, HiddenStates, Logits, Predictions
from cfg_distill.generators.probes import has_linear_head, takes_positions
from cfg_distill.generators.templates import rendered
from cfg_distill.prompt import Prompt, PromptLike

log = logging.getLogger(__name__)
_KIND = "a causal language model"
_ALWAYS_CAUSAL = ("gpt_neox", "gpt_neox_japanese")
"""Kinds whose config has an `is_decoder` that nothing reads: they see tokens to the left alone."""


class CausalLM(Generator):
    """A generator over ``AutoModelForCausalLM``. One codebook: the K axis has length 1.

    Args:
        path: a model folder, a hub name, or ``tunes:base``, the shipped text-to-music model. An adapter folder stands for its
            base with the adapter added to the weights.
        chat_template: pass prompts through the tokenizer's chat template. None: when there is one.
        system: the system message before each prompt, under a chat template. None: the template's own default.
        unconditional: the text that stands for a dropped prompt. None: the empty user message under a chat template,
            else the begin token alone (the end token for models without one, as GPT-2 was trained).
        dtype: the dtype of the weights. Training takes float32, or ``lora``.
        prompt_once: read each prompt once for its whole group, through the key-value cache. Off: once per sample, for models
            whose cache takes no gradient.
        lora: train an adapter instead of all weights; the teacher then shares the base's weights.
    """

    conditions: tuple[str, ...] = ("system", "prefix")
    model: Any  # transformers' own classes type their call too loosely to check against

    def __init__(
        self,
        path: str = "tunes:base",
        chat_template: bool | None = None,
        unconditional: str | None = None,
        dtype: DTypeName = "float32",
        prompt_once: bool = True,
        lora: LoRA | None = None,
        system: str | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.chat_template = chat_template
        self.unconditional = unconditional
        self.dtype = dtype
        self.prompt_once = prompt_once
        self.lora = lora
        self.system = system

    # Settings, known before weights are loaded

    def problems(self, context: Context = Context()) -> list[Problem]:
        wrong = problems_of_folder(self.path) or problems_of_type(self.path, _KIND, causal_types())
        found = (
            [problem.under("path") for problem in wrong] or self._problems_of_cache() or self._problems_of_tokenizer()
        )
        return found + self.problems_of_lora(context, None if found else self._without_weights)

    def _problems_of_cache(self) -> list[Problem]:
        """Why it cannot go on from what it read: an encoder sees tokens to the right, and no state is repeated for a group."""
        with_state = vars(cache_utils).get("LinearAttentionCacheLayerMixin", ())
        layers = growing_cache(self.config).layers
        plain = all(hasattr(each, "batch_repeat_interleave") and not isinstance(each, with_state) for each in layers)
        network: Any = AutoModelForCausalLM._model_mapping[type(self.config)]
        kind = self.config.model_type
        text = f"expected a model whose layers keep keys and values, but `{self.path}` ({kind}) keeps a state in some layers."
        if not (plain and takes_cache(network)):
            return [Problem("path", f"{text} Name a model of attention alone.")]
        # BERT and its kin read `is_decoder`; Bart and its kin, whose decoder is loaded alone, set it themselves.
        causal = kind in _ALWAYS_CAUSAL or vars(self.config).get("is_decoder", True)
        if causal or self._without_weights().config.is_decoder:
            return []
        text = f"expected a model that reads from left to right, but `{self.path}` ({kind}) is an encoder"
        return [Problem("path", f"{text}: `is_decoder` of its config.json is false. Name a causal language model.")]

    def _problems_of_tokenizer(self) -> list[Problem]:
        """The first problem of the tokenizer; the later checks need it whole."""
        key, text = "", ""
        if self.chat_template and not self.tokenizer.chat_template:
            key, text = (
                "chat_template",
                (
                    f"expected a tokenizer with a chat template, but the tokenizer of `{self.path}` has none."
                    " Set it to false, or use an instruction-tuned model."
                ),
            )
        elif self.system is not None and not self.takes_system:
            key, text = (
                "system",
                (
                    f"expected a model under a chat template that takes system messages, but `{self.path}` is none."
                    " Leave it out, or write it into the prompts."
                ),
            )
        elif self.tokenizer.pad_token_id is None:
            key, text = (
                "path",
                (
                    f"expected a tokenizer with a pad token or an end token, but the tokenizer of `{self.path}` has neither."
                    " Set one in its tokenizer_config.json."
                ),
            )
        elif self.unconditional is not None and not self._encoded(self.unconditional):
            key, text = (
                "unconditional",
                (
                    f"expected a text of at least one token, but `{self.path}` makes none of {self.unconditional!r}."
                    " Leave it out for the default, or give it words."
                ),
            )
        return [Problem(key, text)] if key else []

    def _without_weights(self) -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config)

    @cached_property
    def config(self) -> Any:
        return from_hub(AutoConfig, base_of(self.path), _KIND)

    @cached_property
    def tokenizer(self) -> Any:
        bare = is_adapter(self.path) and not (Path(self.path).expanduser() / "tokenizer_config.json").is_file()
        source = base_of(self.path) if bare else self.path
        tokenizer = from_hub(AutoTokenizer, source, _KIND, padding_side="left")
        # Some add a pad token without growing the embedding.
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= self._of_text.vocab_size:
            # Only its id is needed: padded cells are masked everywhere.
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def max_positions(self) -> int | None:
        return getattr(self._of_text, "max_position_embeddings", None)

    @property
    def _of_text(self) -> Any:
        """The config of the language model, which may be a part of a model that also sees or hears."""
        return self.config.get_text_config(decoder=True)

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:  # type: ignore[override]
        """The end tokens of the model's generation config, a turn's end among them, then the tokenizer's end token."""
        try:
            asked = GenerationConfig.from_pretrained(resolve(base_of(self.path))).eos_token_id
        except OSError:  # the model has no generation config
            asked = None
        if asked is None:  # what config.json says, as transformers does; not the default of a config's class
            asked = PreTrainedConfig.get_config_dict(resolve(base_of(self.path)))[0].get("eos_token_id")
        listed = asked if isinstance(asked, list) else [asked]
        ends = dict.fromkeys([*listed, self.tokenizer.eos_token_id])
        return tuple(token for token in ends if token is not None)

    @property
    def pad_token(self) -> int:  # type: ignore[override]
        return self.tokenizer.pad_token_id

    @property
    def layout(self) -> dict[str, Any]:
        return super().layout | {"vocabulary": (self.tokenizer.get_vocab(), self._of_text.vocab_size)}

    # Weights

    def load(self) -> Self:
        if not self.loaded:
            self.model = self._load_model(self.path)
            if self.lora is not None:
                self.lora.inject(self.model)
            use_products(self.model)
            self.eval()  # peft's layers begin in train mode
            end = self.tokenizer.eos_token_id
            if self._encoded("a")[-1:] == [end] != [self.tokenizer.unk_token_id]:
                text = "The tokenizer of `%s` puts its end token behind every prompt: the model goes on after an end."
                log.warning(f"{text} Set `add_eos_token` to false in its tokenizer_config.json.", self.path)
            if has_weights() and not takes_positions(self.model, self.pad_token):
                text = f"expected a model that takes the positions of its tokens, but `{self.path}` ({self.config.model_type})"
                text += (
                    " counts them itself, and would read a prompt otherwise beside a longer one. Name another model."
                )
                raise ConfigError(Problem("path", text))
        return self

    def load_weights(self, folder: str) -> None:
        self.take_weights(folder, lambda: self._load_model(folder).state_dict())

    def _load_model(self, path: str) -> Any:
        return adapted_network(AutoModelForCausalLM, path, _KIND, DTYPES[self.dtype], self.dial)

    def save(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(folder)
        if self.lora is not None:
            save_adapter(self.model, self.path, folder, task_type="CAUSAL_LM")
        else:
            copy_profile(self.path, folder)
            self.model.save_pretrained(folder)
        # Neutral on purpose: a distilled model needs no guidance, and a library's default of top-k 50 is not its distribution.
        GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.end_tokens[0] if len(self.end_tokens) == 1 else list(self.end_tokens) or None,
            pad_token_id=self.tokenizer.pad_token_id,
        ).save_pretrained(folder)

    # Prompts

    @property
    def _templated(self) -> bool:
        return bool(self.tokenizer.chat_template if self.chat_template is None else self.chat_template)

    @cached_property
    def takes_system(self) -> bool:  # type: ignore[override]
        """Whether the template writes a system message: some templates refuse system messages, or leave them out."""
        if not self._templated:
            return False
        try:
            return "system message" in self._chat("a prompt", "a system message")
        except ConfigError:
            return False

    @property
    def takes_tail(self) -> bool:  # type: ignore[override]
        """Not under a chat template: its last token marks a role."""
        return not self._templated

    def _text(self, given: PromptLike | None) -> str:
        if given is None and self.unconditional is not None:
            return self.unconditional
        prompt = Prompt.of(given or "")
        prefix, system = prompt.conditions.get("prefix", ""), prompt.conditions.get("system", self.system)
        if prefix:  # in front of all that the template writes: the label of a conditioner
            bare = {name: value for name, value in prompt.conditions.items() if name != "prefix"}
            return f"{prefix} {self._text(Prompt(prompt.text, **bare))}"
        if self._templated:
            return self._chat(prompt.text, system)
        if system is not None:
            raise ConfigError(
                f"Prompt {prompt.text!r}: expected no system message, since `{self.path}` is used without a chat template, but"
                f" got {system!r}. Leave it out, or write it into the prompts."
            )
        return prompt.text or self.tokenizer.bos_token or self.tokenizer.eos_token or ""

    def _chat(self, prompt: str, system: str | None) -> str:
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return rendered(self.tokenizer, messages, f"Prompt {prompt!r}")

    def _encoded(self, text: str) -> list[int]:
        # A chat template writes its own special tokens. Elsewhere the tokenizer adds the special tokens of the model's
        # training, unless the text is the begin token alone already.
        alone = text in (self.tokenizer.bos_token, self.tokenizer.eos_token)
        return self.tokenizer(text, add_special_tokens=not self._templated and not alone)["input_ids"]

    def problems_of_prompts(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        found = super().problems_of_prompts(prompts)
        asking = [prompt for prompt in map(Prompt.of, prompts) if "system" in prompt.conditions]
        if asking and self._templated and not self.takes_system:
            text = f"expected no system message, since the chat template of `{self.path}` leaves it out. Remove the condition"
            found.append(PromptProblem.of(asking[0], f"{text} `system`, or write it into the prompts."))
        return found

    def _rows(self, prompts: Sequence[PromptLike | None]) -> list[list[int]]:
        """The tokens of each prompt; at least one, since the first prediction reads one."""
        source = "chat template" if self._templated else "tokenizer"
        none = f"expected at least one token, but the {source} of `{self.path}` makes none of it."
        rows, found = list[list[int]](), dict[Problem, None]()
        for prompt in prompts:
            try:
                rows.append(self._row(prompt))
            except ConfigError as error:
                found[self._refusal(Prompt.of(prompt or ""), error)] = None
                continue
            if rows[-1]:
                continue
            text = f"The dropped prompt: {none} Set `@/model.generator.init_args.unconditional` to a text."
            dropped = Problem("", text)
            found[dropped if prompt is None else PromptProblem.of(prompt, f"{none} Give it words.")] = None
        if found:
            raise ConfigError([*found])
        return rows

    def _refusal(self, prompt: Prompt, error: ConfigError) -> Problem:
        """Why a prompt cannot be read, by a reason that is the same for all prompts that cannot be read for it."""
        reason, general = _reason(prompt.text, error), ""
        try:  # what is said of another prompt shows which words of the reason are the prompt itself
            self._row(prompt.but(ITS_PROMPT))
        except ConfigError as other:
            general = _reason(ITS_PROMPT, other)
        return PromptProblem.of(prompt, general if general.replace(ITS_PROMPT, prompt.text) == reason else reason)

    def _row(self, prompt: PromptLike | None) -> list[int]:
        # The tokens are cut, and not the text: the text of a token need not be read as that token again.
        return self._encoded(self._text(prompt))[-int(Prompt.of(prompt or "").conditions.get("tail", 0)) :]

    def prompt_positions(self, prompts: Sequence[PromptLike | None]) -> int:
        return max(len(row) for row in self._rows(prompts))

    def encode(self, prompts: Sequence[PromptLike | None]) -> Encoded:
        batch = self.tokenizer.pad({"input_ids": self._rows(prompts)}, padding_side="left", return_tensors="pt")
        return Encoded({name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")})

    # Predictions

    @cached_property
    def _linear_head(self) -> bool:
        """Whether the logits are a linear map of the last states."""
        if not is_linear(self.model.get_output_embeddings()):
            return False
        # A cap that the config names hardly moves small logits: no probe of a young model would show it.
        found = not vars(self._of_text).get("final_logit_softcapping") and has_linear_head(self.model)
        if not found:
            log.warning(
                "The logits of `%s` are no linear map of its states (a soft cap?): they are computed whole.", self.path
            )
        return found

    def _predict(self, ids_NS: Tensor, mask_NS: Tensor, cache: Any, last: int) -> Predictions:
        """Run the network over new tokens; predictions after each of the ``last`` ones."""
        inputs = {
            "input_ids": ids_NS,
            "attention_mask": mask_NS,
            "position_ids": (mask_NS.cumsum(-1) - 1).clamp(min=0)[:, -ids_NS.shape[1] :],
            self.cache_argument: cache,
            "use_cache": cache is not None,
        }
        if not self._linear_head:
            return Logits(self.model(**inputs, logits_to_keep=last).logits[:, None])
        head = Head.of([self.model.get_output_embeddings()])
        return HiddenStates(self.model.base_model(**inputs).last_hidden_state[:, -last:], head)

    def prefill(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[DecodingState, Predictions]:
        if not self.prompt_once:
            prompts, repeats = [prompt for prompt in prompts for _ in range(repeats)], 1
        encoded = self.encode(prompts).tensors
        mask_BS = encoded["attention_mask"]
        cache = growing_cache(self.model.config)
        first = self._predict(encoded["input_ids"], mask_BS, cache, last=1)
        state = DecodingState(cache, {"mask": mask_BS})
        state.repeat_(repeats)
        return state, first.repeat(repeats)

    def step(self, state: DecodingState, tokens_NK: Tensor) -> tuple[DecodingState, Predictions]:
        mask_NS = torch.nn.functional.pad(state.tensors["mask"], (0, 1), value=1)
        predicted = self._predict(tokens_NK, mask_NS, state.cache, last=1)
        return DecodingState(state.cache, {"mask": mask_NS}), predicted

    def predictions(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        # The prediction at position n reads the tokens before it: the last generated token is never an input.
        tokens_NT, mask_NT = tokens_NKT[:, 0, :-1], mask_NKT[:, 0, :-1].long()
        num_new, repeats = tokens_NT.shape[1], len(tokens_NT) // len(prompts)
        if self.prompt_once and repeats > 1:
            state, first = self.prefill(prompts, repeats)
            if not num_new:
                return first
            mask_NS = torch.cat([state.tensors["mask"], mask_NT], dim=1)
            return first.join(self._predict(tokens_NT, mask_NS, state.cache, last=num_new))
        encoded = self.encode(prompts).repeat_interleave(repeats).tensors
        mask_NS = torch.cat([encoded["attention_mask"], mask_NT], dim=1)
        return self._predict(torch.cat([encoded["input_ids"], tokens_NT], dim=1), mask_NS, None, last=num_new + 1)

    def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[str]:
        rows = [tokens_T[mask_T].tolist() for tokens_T, mask_T in zip(tokens_NKT[:, 0], mask_NKT[:, 0], strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)


def _reason(text: str, error: ConfigError) -> str:
    """What is wrong with a prompt, without its name."""
    return str(error.problems[0]).removeprefix(f"Prompt {text!r}: ")
