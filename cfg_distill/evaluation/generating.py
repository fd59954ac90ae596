"""The request for samples of one model, and everything that is wrong with it, found before the model is loaded.

Problems name the request's own fields, which a command renders as its options.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cfg_distill.audio import AudioForm, problems_of_audio_extra
from cfg_distill.data import problem_of_conditions, problem_of_text
from cfg_distill.data.reading import together
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_scale
from cfg_distill.evaluation.anneal import Anneal, annealed, problems_of_anneal
from cfg_distill.evaluation.refusals import (
    at_key,
    problems_of_folder_to_write,
    problems_of_model,
    problems_of_sampling,
    remarks_on_scales,
)
from cfg_distill.evaluation.renderers import Renderer, renderer_of
from cfg_distill.folders import is_adapter
from cfg_distill.folders.dials import problems_of_dial, remarks_on_dial
from cfg_distill.folders.history import remarks_on_guiding
from cfg_distill.generators import Generator, Guidance, Prompt, PromptLike, open_generator
from cfg_distill.generators.length import asked_length
from cfg_distill.generators.songs import Songs
from cfg_distill.sampling import Samples, Sampling, draw, positions_left, problems_of_lengths

MOST_TOKENS = 512
"""The default length of text; less where the model has fewer positions."""
SOUNDS = Path("samples")
"""The default folder of sound, which cannot be printed."""


@dataclass(frozen=True)
class GenerateRequest:
    """Samples of one model.

    Args:
        model: a model folder, adapter folder, hub name or ``tunes:base``.
        prompts: the prompts.
        samples: samples per prompt.
        max_new_tokens: the longest sample; None for ``seconds`` of sound, or for as much text as the model can see.
        seconds: the length of sound; None for 10.
        temperature: of sampling.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities first reach p; 1 keeps all.
        guidance: its scale; 1 is none.
        dial: what the change of an adapter is multiplied by; of one that was trained with a dial, 0 is no guidance and 1 all of
            it. None for the adapter as it is.
        negative: the negative prompt, under guidance.
        negative_system: the system message of the negative branch, under guidance.
        seed: of sampling.
        melody: a sound file that a melody model follows.
        conditions: what else the prompts condition on, each as ``NAME=TEXT``.
        out: a folder for the samples as files; None for none, of sound for ``samples``.
        overwrite: write into a folder that holds files.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.
        trust: modules, beside this package, that the model's folder may name for its renderer.
        audio: the form of sound files: ``wav``, ``flac`` or ``ogg``.
        anneal: begin the samples by a start model; None for the model alone.
    """

    model: str
    prompts: Sequence[str]
    samples: int = 4
    max_new_tokens: int | None = None
    seconds: float | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    negative: str | None = None
    negative_system: str | None = None
    seed: int = 0
    melody: str | None = None
    conditions: Sequence[str] = ()
    out: Path | None = None
    overwrite: bool = False
    dtype: str = "float32"
    trust: Sequence[str] = ()
    audio: AudioForm = "wav"
    anneal: Anneal | None = None
    dial: float | None = None

    def problems(self, context: Context = Context()) -> list[Problem]:
        """Everything that is wrong with the request; no weights are loaded."""
        return self._plan.problems

    def remarks(self) -> list[Problem]:
        """Lines for the user about a request without problems: a word that means nothing to the model, for example."""
        plan = self._plan
        return plan.remarks + (
            [] if plan.problems else [Problem("", each) for each in plan.renderer.remarks(self.prompts)]
        )

    def draw(self) -> Samples:
        """Load the model and draw the samples.

        Raises:
            ConfigError: see :meth:`problems`; the model's weights cannot be loaded, or predict NaN.
        """
        from cfg_distill.generators import device

        plan = self._plan
        if plan.problems:
            raise ConfigError(plan.problems)
        generator = plan.generator.load().to(device())
        predictor = annealed(generator, self.anneal, plan.sampling.max_new_tokens)
        return draw(predictor, plan.prompts, plan.sampling, plan.guidance, self.seed)

    @property
    def renderer(self) -> Renderer:
        """How the samples are shown and written."""
        return self._plan.renderer

    @property
    def folder(self) -> Path | None:
        """Where the samples go; None where they are printed only."""
        return self._plan.folder

    @cached_property
    def _plan(self) -> _Plan:
        return _Plan(self)


class _Plan:
    """A :class:`GenerateRequest` made ready, as far as it can be."""

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self.remarks: list[Problem] = []
        self.renderer = Renderer()
        self.generator = open_generator(request.model, request.dial, dtype=request.dtype)
        self.guidance = Guidance(request.guidance, request.negative, negative_system=request.negative_system)
        self.named = named = {} if request.melody is None else {"melody": request.melody}
        named |= {name: text for name, _, text in (each.partition("=") for each in request.conditions)}
        self.prompts: list[PromptLike] = [Prompt(text, **named) if named else text for text in request.prompts]
        self.problems = [Problem("conditions", f"expected NAME=TEXT, but got {each!r}.") for each in request.conditions
                         if not all(each.partition("="))]  # fmt: skip
        self.problems += [Problem("conditions", said)] if (said := problem_of_conditions(named)) else []
        self.problems += [Problem("prompts", said) for said in map(problem_of_text, request.prompts) if said]
        self.problems += problems_of_model(self.generator, "model")
        self.problems += problems_of_dial(request.model, request.dial, is_adapter(request.model))
        readable = not self.problems
        length = self._length() if readable else request.max_new_tokens
        self.sampling = Sampling(
            request.samples, 1 if length is None else length, request.temperature, request.top_k, request.top_p
        )
        self._check_numbers(self.generator.longest_sample if readable else None)
        self.remarks += remarks_on_scales([request.guidance]) + remarks_on_guiding([request.model], [request.guidance])
        self.remarks += remarks_on_dial(request.model, request.dial)
        if not named and (empty := sum(not text.strip() for text in request.prompts)):
            text = f"{empty} of {len(request.prompts)} without a word. If it came from a variable, set that."
            self.remarks.append(Problem("prompts", text))
        self.folder = request.out
        if readable:
            self._check_model()
        if self.folder is not None:
            self.problems += problems_of_folder_to_write(self.folder, request.overwrite)
        if request.audio != "wav":
            self.problems += at_key("audio", problems_of_audio_extra())
        if not self.problems:
            self._check_lengths(length)
        self.problems = together(self.problems)

    def _length(self) -> int | None:
        length, found = asked_length(self.generator, self.request.max_new_tokens, self.request.seconds)
        self.problems += found
        return length

    def _check_numbers(self, longest: int | None) -> None:
        request = self.request
        self.problems += problems_of_scale("guidance", request.guidance, "negative") + problems_of_sampling(
            self.sampling, longest
        )
        given = {"negative": request.negative, "negative_system": request.negative_system}
        for name in [name for name, text in given.items() if text is not None and not self.guidance.active]:
            self.problems.append(Problem(name, "has no effect without guidance. Set `@.guidance` above 1."))

    def _check_model(self) -> None:
        request, generator = self.request, self.generator
        self.problems += problems_of_anneal(request.anneal, generator)
        self.problems += _problems_of_fields(generator, self.named)
        if request.melody is not None and generator.frame_rate is None:
            text = f"is for models of sound, but `{request.model}` writes text. Leave it out."
            self.problems.append(Problem("melody", text))
        if request.negative_system is not None and not self.problems and not generator.takes_system:
            text = f"expected a model under a chat template that takes system messages, but `{request.model}` is none."
            self.problems.append(Problem("negative_system", f"{text} Give `@.negative` instead."))
        if self.folder is None and generator.frame_rate is not None:
            self.folder = SOUNDS
        try:
            self.renderer, remarks = renderer_of(request.model, request.trust)
            self.remarks += remarks
        except ConfigError as error:
            self.problems += at_key("model", error.problems)
        self.problems += at_key("prompts", self.renderer.problems_of_prompts(request.prompts))

    def _check_lengths(self, length: int | None) -> None:
        if length is None:
            try:
                left = positions_left(self.generator, self.prompts, self.guidance)
            except ConfigError as error:
                self.problems += error.problems
                return
            self.sampling.max_new_tokens = MOST_TOKENS if left is None else max(1, min(MOST_TOKENS, left))
        self.problems += problems_of_lengths(self.generator, self.prompts, self.sampling, self.guidance)


def _problems_of_fields(generator: Generator, given: Mapping[str, str]) -> list[Problem]:
    """Fields that a model of songs reads beside each prompt, and that were not given."""
    if not isinstance(generator, Songs):
        return []
    lacking = [name for name in generator.required if not given.get(name, "").strip()]
    if not lacking:
        return []
    words = shlex.join(f"{name}={' '.join(generator.example[name].split())}" for name in lacking)
    text = (
        f"expected {', '.join(generator.required)}, which `{generator.path}` reads beside the prompt, but"
        f" {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing. Add `@.conditions` {words}."
    )
    return [Problem("conditions", text)]
