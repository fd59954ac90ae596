"""Songs as tokens of a language model: the 5 Hz model of ACE-Step 1.5, and the first stage of YuE.

Both are plain causal language models that write the codes of a codec, one token per code. Other models make sound of the codes.
Three things are their own: how a prompt is written down, what stands for the dropped prompt, and which tokens can be drawn.

Shapes: N rows, K = 1 codebook, T positions, V vocabulary.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import Tensor

from cfg_distill.errors import Problem, PromptProblem
from cfg_distill.folders.profile import add_setting
from cfg_distill.generators.base import DTypeName
from cfg_distill.generators.causal_lm import CausalLM
from cfg_distill.generators.lora import LoRA
from cfg_distill.generators.predictions import NEVER, Head, HiddenStates, Logits, Predictions
from cfg_distill.generators.templates import rendered
from cfg_distill.guidance import Guidance
from cfg_distill.prompt import Prompt, PromptLike


class Songs(CausalLM):
    """A causal language model that writes codes: prompts have fields, and nothing but codes and the end can be drawn.

    A sample is decoded into the names of its codes, with spaces between them.

    Attributes:
        required: the conditions that each prompt must have.
        example: the conditions of a prompt, for messages.
    """

    takes_system = False
    takes_tail = False
    required: tuple[str, ...] = ()
    example: ClassVar[Mapping[str, str]] = {}

    @property
    @abstractmethod
    def codes(self) -> dict[int, str]:
        """Token -> name of each code that can be drawn."""

    # Prompts

    def problems_of_prompts(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        """See :meth:`Generator.problems_of_prompts`: a prompt may lack fields, or their values may be wrong."""
        found = super().problems_of_prompts(prompts)
        for prompt in map(Prompt.of, prompts):
            if names := [name for name in self.required if not prompt.conditions.get(name, "").strip()]:
                reason = (
                    f"expected the conditions {', '.join(self.required)}, but {', '.join(names)} are not there. Add them, in"
                    f' JSON lines as {{"prompt": "...", "conditions": {json.dumps(self.example)}}}.'
                )
                found.append(PromptProblem.of(prompt, reason))
            else:
                found += [PromptProblem.of(prompt, said) for said in self._wrong(prompt)]
        return found

    def _wrong(self, prompt: Prompt) -> list[str]:
        """What is wrong with the values of a prompt that has all its fields."""
        return []

    # Predictions

    @cached_property
    def _never_V(self) -> Tensor:
        """A bias that forbids all tokens but codes and ends."""
        num_tokens = self.model.get_output_embeddings().weight.shape[0]
        never_V = torch.full((num_tokens,), NEVER, device=self.device)
        never_V[[*self.codes, *self.end_tokens]] = 0
        return never_V

    def _predict(self, ids_NS: Tensor, mask_NS: Tensor, cache: Any, last: int) -> Predictions:
        found = super()._predict(ids_NS, mask_NS, cache, last)
        if isinstance(found, Logits):
            return Logits(found.logits_NKTV + self._never_V.to(found.logits_NKTV))
        head, states_NTD = found.head, found.states(0)
        never_V = self._never_V.to(states_NTD)
        own_V = None if head.bias_KV is None else head.bias_KV[0]
        return HiddenStates(states_NTD, Head(head.weight_KVD, [never_V if own_V is None else own_V + never_V]))

    def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[str]:
        rows = (tokens_T[mask_T].tolist() for tokens_T, mask_T in zip(tokens_NKT[:, 0], mask_NKT[:, 0], strict=True))
        return [" ".join(self.codes[token] for token in row if token in self.codes) for row in rows]

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        add_setting(folder, "generator", type(self).__name__)  # a config says no more than that of any language model


class AceStep(Songs):
    r"""The 5 Hz language model of ACE-Step 1.5, in the phase that writes codes: a Qwen3 of five codes per second of music.

    A prompt is a caption with the conditions ``lyrics`` (``[Instrumental]`` for none), ``bpm``, ``duration`` in seconds,
    ``keyscale`` and ``timesignature``, and maybe ``language``. The tokenizer's own chat template writes it down, as in
    ACE-Step: an instruction, caption and lyrics, and the other conditions as YAML within ``<think>``::

        system     # Instruction\nGenerate audio semantic tokens based on the given conditions:\n\n
        user       # Caption\n{caption}\n\n# Lyric\n{lyrics}\n
        assistant  <think>\nbpm: 96\nduration: 30\nkeyscale: C major\ntimesignature: 4\n</think>

    The negative branch has an empty ``<think>``. It keeps lyrics and caption; a text as ``guidance.negative`` stands in the
    place of the caption. ``NO USER INPUT``, the default of ACE-Step, means no text. A sample holds the tokens
    ``<|audio_code_N|>``, which ACE-Step reads as audio codes. ACE-Step also makes up missing conditions, in a phase of its own
    before this one. It draws exactly ``5 * duration`` codes; here the end is drawn like any token.

    Args:
        path: a folder or a hub name.
        dtype: the dtype of the weights. Training takes float32, or ``lora``.
        prompt_once: read each prompt once for its whole group, through the key-value cache.
        lora: train an adapter instead of all weights; the teacher then shares the base's weights.
    """

    conditions = ("lyrics", "bpm", "duration", "keyscale", "timesignature", "language")
    required = conditions[:-1]
    example: ClassVar[Mapping[str, str]] = {
        "lyrics": "[Instrumental]",
        "bpm": "96",
        "duration": "30",
        "keyscale": "C major",
        "timesignature": "4",
    }

    def __init__(
        self,
        path: str = "ACE-Step/acestep-5Hz-lm-0.6B",
        dtype: DTypeName = "float32",
        prompt_once: bool = True,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(path, dtype=dtype, prompt_once=prompt_once, lora=lora)

    def _problems_of_tokenizer(self) -> list[Problem]:
        if self.codes and self.tokenizer.chat_template:
            return []
        lacks = "a chat template" if self.codes else "tokens <|audio_code_N|>"
        text = (
            f"expected a 5 Hz model of ACE-Step 1.5, but the tokenizer of `{self.path}` has no {lacks}. Name another."
        )
        return [Problem("path", text)]

    @cached_property
    def codes(self) -> dict[int, str]:
        named = ((token, name, _AUDIO_CODE.fullmatch(name)) for name, token in self.tokenizer.get_vocab().items())
        # The vocabulary has some more, which the codec has not.
        return {token: name for token, name, found in named if found and int(found[1]) < _NUM_AUDIO_CODES}

    def _wrong(self, prompt: Prompt) -> list[str]:
        return [
            f"expected a whole number from {least} to {most} as `{name}`, but got {value!r}. Write one, such as"
            f" {self.example[name]}."
            for name, (least, most) in _RANGES.items()
            if not ((value := prompt.conditions[name].strip()).isdecimal() and least <= int(value) <= most)
        ]

    def _text(self, given: PromptLike | None) -> str:
        prompt = Prompt.of(given or "")
        named = {name: value.strip() for name, value in prompt.conditions.items() if name != "lyrics"}
        if "timesignature" in named:
            named["timesignature"] = named["timesignature"].removesuffix("/4")
        thought = {name: int(value) if value.isdecimal() else value for name, value in named.items()}
        written = yaml.safe_dump(thought, allow_unicode=True, sort_keys=True).strip() if thought else ""
        lyrics = prompt.conditions.get("lyrics", "")
        messages = [
            {"role": "system", "content": f"# Instruction\n{_INSTRUCTION}\n\n"},
            {"role": "user", "content": f"# Caption\n{prompt.text}\n\n# Lyric\n{lyrics}\n"},
            {"role": "assistant", "content": f"<think>\n{written}\n</think>"},
        ]
        text = rendered(self.tokenizer, messages, f"Prompt {prompt.text!r}", ask=False)
        return text if text.endswith("\n") else f"{text}\n"

    def _encoded(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def negatives(self, prompts: Sequence[PromptLike | None], guidance: Guidance) -> list[PromptLike | None]:
        """See :meth:`Generator.negatives`: each prompt without its thought, and with the negative text as its caption."""
        instead = "" if guidance.negative in (None, _NO_INPUT) else guidance.negative
        known = [Prompt.of(prompt or "") for prompt in prompts]
        return [Prompt(instead or prompt.text, lyrics=prompt.conditions.get("lyrics", "")) for prompt in known]


_AUDIO_CODE = re.compile(r"<\|audio_code_(\d+)\|>")
_NUM_AUDIO_CODES = 64_000
_INSTRUCTION = "Generate audio semantic tokens based on the given conditions:"
_NO_INPUT = "NO USER INPUT"
_RANGES = {"bpm": (30, 300), "duration": (10, 600)}
"""Those of ACE-Step."""


class YuE(Songs):
    r"""The first stage of YuE: a Llama that writes vocals and accompaniment in turn, 100 codes per second; the first segment.

    A prompt is a line of tags (genre, instruments, mood, voice) with the condition ``lyrics``: sections that begin with a label
    (``[verse]\n...``). The model reads the tags and all lyrics, then the first section, and sings that one. The dropped prompt
    is the last token of any prompt, ``<xcodec>``, as under ``guidance_scale`` in transformers' ``generate``. A negative prompt
    stands in the place of the tags.

    A sample holds the numbers of the codes of codebook 0, vocals first. YuE's script filters by top-p 0.93, punishes
    repetition, and forbids the end within the first 100 codes. None of these is the model's own distribution, and they are left
    out.

    Args:
        path: a folder or a hub name, with the tokenizer beside the weights.
        dtype: the dtype of the weights. Training takes float32, or ``lora``.
        prompt_once: read each prompt once for its whole group, through the key-value cache.
        lora: train an adapter instead of all weights; the teacher then shares the base's weights.
    """

    conditions = ("lyrics",)
    required = conditions
    example: ClassVar[Mapping[str, str]] = {"lyrics": "[verse]\nFirst line\nSecond line"}

    def __init__(
        self,
        path: str = "m-a-p/YuE-s1-7B-anneal-en-cot",
        dtype: DTypeName = "float32",
        prompt_once: bool = True,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(path, dtype=dtype, prompt_once=prompt_once, lora=lora)

    def _problems_of_tokenizer(self) -> list[Problem]:
        known = self.tokenizer.get_vocab()
        missing = [name for name in (_BEGIN, _END, _CODEC) if name not in known]
        if not missing and self.config.vocab_size >= _FIRST_CODE + _NUM_CODES:
            return []
        has = f"has no {', '.join(missing)}" if missing else f"leaves a vocabulary of {self.config.vocab_size} tokens"
        text = f"expected a first stage of YuE, but the tokenizer of `{self.path}` {has}. Name another."
        return [Problem("path", text)]

    @cached_property
    def codes(self) -> dict[int, str]:
        return {_FIRST_CODE + code: str(code) for code in range(_NUM_CODES)}

    def _id(self, name: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(name)

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self._id(_END),)

    @property
    def pad_token(self) -> int:  # type: ignore[override]
        return self._id(_END)

    def _wrong(self, prompt: Prompt) -> list[str]:
        lyrics = prompt.conditions["lyrics"]
        if not (sections := _sections(lyrics)):
            return ["expected lyrics in sections, each under a label such as [verse], but found no label. Add one."]
        if "".join("".join(sections).split()) == "".join(lyrics.split()):
            return []
        return [
            "expected every line of the lyrics under a label of one word, such as [verse] or [prechorus], but some stand under"
            " none, and would not be sung. Rename labels such as [pre-chorus] or [verse 2]."
        ]

    def _row(self, given: PromptLike | None) -> list[int]:
        if given is None:
            return [self._id(_CODEC)]
        prompt = Prompt.of(given)
        sections = _sections(prompt.conditions.get("lyrics", "")) or [""]
        head = f"{_REQUEST}\n[Genre] {prompt.text.strip()}\n" + "\n".join(sections)
        # Each piece by itself, as in YuE: a tokenizer of this kind puts a space before what it is given.
        pieces = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (head, _SEGMENT, sections[0])]
        return [*(token for piece in pieces for token in piece), self._id(_BEGIN), self._id(_CODEC)]

    def negatives(self, prompts: Sequence[PromptLike | None], guidance: Guidance) -> list[PromptLike | None]:
        """See :meth:`Generator.negatives`: one for all, or each prompt with the negative text as its tags."""
        if guidance.negative is None:
            return [None]
        return [Prompt.of(prompt or "").but(guidance.negative) for prompt in prompts]


_BEGIN, _END, _CODEC = "<SOA>", "<EOA>", "<xcodec>"
_FIRST_CODE, _NUM_CODES = 45_334, 1024
"""The codes of the codec's first codebook, the only one that the first stage writes."""
_REQUEST = "Generate music from the given lyrics segment by segment."
_SEGMENT = "[start_of_segment]"


def _sections(lyrics: str) -> list[str]:
    r"""Lyrics as YuE cuts them: each label with its lines.

    Example:
        >>> _sections("[verse]\nA line\n\n[chorus]\nAnother\n")
        ['[verse]\nA line\n\n', '[chorus]\nAnother\n\n']
    """
    return [
        f"[{label}]\n{lines.strip()}\n\n" for label, lines in re.findall(r"\[(\w+)\](.*?)(?=\[|\Z)", lyrics, re.DOTALL)
    ]
