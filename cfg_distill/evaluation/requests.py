"""The request for points of a front, and everything that is wrong with it, found before a model is loaded.

It holds plain values. Its problems name its own fields, which a command renders as its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from cfg_distill.audio import AudioForm
from cfg_distill.data import read_prompts
from cfg_distill.data.reading import together
from cfg_distill.errors import ConfigError, Context, Problem, PromptProblem, problems_of_counts, problems_of_scale
from cfg_distill.evaluation.anneal import Anneal, problems_of_anneal
from cfg_distill.evaluation.chosen import (
    default_metrics,
    metrics_of,
    problems_of_group,
    problems_of_metrics_on,
    read_metrics,
)
from cfg_distill.evaluation.points import Point, points_of
from cfg_distill.evaluation.refusals import (
    RESULT_FILES,
    at_key,
    problems_of_model,
    problems_of_sampling,
    remarks_on_scales,
)
from cfg_distill.evaluation.renderers import Renderer, renderer_of
from cfg_distill.files import problems_of_out
from cfg_distill.folders.dials import problems_of_dial, remarks_on_dial
from cfg_distill.folders.history import remarks_on_guiding
from cfg_distill.generators import Generator, Guidance, PromptLike, open_generator
from cfg_distill.generators.length import asked_length
from cfg_distill.metrics.base import SampleMetric
from cfg_distill.sampling import Sampling, problems_of_lengths

TOKENS = 128
"""The default length of text."""


@dataclass(frozen=True)
class EvaluateRequest:
    """Points of a front: each model at each temperature and guidance scale.

    Args:
        models: model folders, adapter folders, hub names or ``tunes:base``. ``tunes:base@2`` is guided by 2, whatever
            ``guidance`` says of the others.
        prompts: a file of prompts: text (a prompt per line), JSON lines or CSV.
        out: a folder for front.json, front.png, table.txt, the values per prompt and some samples; None only prints.
        samples: samples per prompt and seed.
        seeds: of sampling; each draws its own groups.
        max_new_tokens: the longest sample; None for 128 tokens of text, or ``seconds`` of sound.
        temperature: sampling temperatures.
        guidance: scales of guidance; 1 is none.
        dial: settings of the dial, for every adapter folder among the models; none for all of the adapter.
        metrics: a YAML file, name -> class_path and init_args; None takes the metrics that the models' folders name, or
            chooses by the kind of model.
        batch_size: prompts at once.
        overwrite: write into an ``out`` that holds results.
        seconds: of sound; None for 10. Models of other frame rates get as many seconds.
        written: number of prompts of which samples are written, to be read and heard.
        written_samples: number of samples of each that are written.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``. One model is in memory at a time.
        trust: modules, beside this package, that the models' folders may name for their renderer and metrics.
        audio: the form of sound files: ``wav``, ``flac`` or ``ogg``.
        anneal: begin the samples of each model by a start model; None for the models alone.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose mass reaches p; 1 keeps all.
        negative: the negative prompt of guided points.
    """

    models: Sequence[str]
    prompts: str | Path
    out: str | Path | None = None
    samples: int = 8
    seeds: Sequence[int] = (0,)
    max_new_tokens: int | None = None
    temperature: Sequence[float] = (1.0,)
    guidance: Sequence[float] = (1.0,)
    metrics: str | Path | None = None
    batch_size: int = 8
    overwrite: bool = False
    seconds: float | None = None
    written: int = 12
    written_samples: int = 2
    dtype: str = "float32"
    trust: Sequence[str] = ()
    audio: AudioForm = "flac"
    anneal: Anneal | None = None
    dial: Sequence[float] = ()
    top_k: int = 0
    top_p: float = 1.0
    negative: str | None = None

    def guidance_of(self, scale: float) -> Guidance:
        """The guidance of a scale; the negative prompt belongs to guided points alone."""
        return Guidance(scale, self.negative if scale != 1 else None)

    @cached_property
    def points(self) -> list[Point]:
        """What is evaluated, model by model."""
        return points_of(self.models, self.temperature, self.guidance, self.dial)

    def problems(self, context: Context = Context()) -> list[Problem]:
        """Everything that is wrong with the request; no weights are loaded."""
        return self.plan.problems

    def remarks(self) -> list[Problem]:
        """Lines for the user about a request without problems: a renderer that is not trusted, for example."""
        return self.plan.remarks

    @cached_property
    def plan(self) -> Points:
        """The request made ready, as far as it can be."""
        return Points(self)


@dataclass
class Points:
    """An :class:`EvaluateRequest` made ready, as far as it can be.

    Attributes:
        request: what was asked for.
        problems: everything that is wrong with it.
        remarks: see :meth:`EvaluateRequest.remarks`.
        prompts: the prompts of the file.
        lengths: the longest sample of each model, in tokens or frames.
        renderers: how the samples of each model are written.
        metrics: by name, not loaded.
    """

    request: EvaluateRequest
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    prompts: list[PromptLike] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)
    renderers: dict[str, Renderer] = field(default_factory=dict)
    metrics: dict[str, SampleMetric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._read_prompts()
        generators = self._open()
        if generators:
            self._check_lengths(generators)
        self._choose_metrics(list(generators.values()))
        if self.prompts:
            self.problems = together(self.problems, self.request.prompts)
        self.problems = list(dict.fromkeys(self.problems))
        self.remarks += remarks_on_scales([point.guidance for point in self.request.points])
        for point in self.request.points:
            self.remarks += remarks_on_guiding([point.model], [point.guidance]) + remarks_on_dial(
                point.model, point.dial
            )
        self.remarks = list(dict.fromkeys(self.remarks))

    @property
    def _models(self) -> list[str]:
        """The models, each once."""
        return list(dict.fromkeys(point.model for point in self.request.points))

    def _check_numbers(self) -> None:
        request = self.request
        if request.out is not None:
            inputs = [request.prompts]
            self.problems += problems_of_out(request.out, inputs, request.overwrite, RESULT_FILES, whole=False)
        if not request.seeds or len(set(request.seeds)) < len(request.seeds):
            self.problems.append(
                Problem("seeds", f"expected one or more different numbers, but got {list(request.seeds)}.")
            )
        self.problems += problems_of_counts(batch_size=request.batch_size)
        self.problems += [problem for scale in request.guidance for problem in problems_of_scale("guidance", scale)]
        own = dict.fromkeys((point.model, point.guidance) for point in request.points)
        for model, scale in own:
            if scale not in request.guidance:  # that of a model named `DIR@SCALE`
                found = problems_of_scale("models", scale)
                self.problems += [replace(each, text=f"guidance of `{model}`: {each.text}") for each in found]
        for point in request.points:
            self.problems += problems_of_dial(point.model, point.dial, adapter=True)
        if request.negative is not None and all(point.guidance == 1 for point in request.points):
            self.problems.append(Problem("negative", "has no effect without guidance. Set `@.guidance` above 1."))
        if request.dial and all(point.dial is None for point in request.points):
            text = "expected an adapter among the models, whose change is scaled, but all are whole. Leave it out."
            self.problems.append(Problem("dial", text))

    def _read_prompts(self) -> None:
        try:
            self.prompts = read_prompts(self.request.prompts)
        except ConfigError as error:
            self.problems += at_key("prompts", error.problems)

    def _open(self) -> dict[str, Generator]:
        """The models, not loaded; none when one of them cannot be."""
        opened = {model: open_generator(model, dtype=self.request.dtype) for model in self._models}
        wrong = [problem for generator in opened.values() for problem in problems_of_model(generator, "models")]
        if not wrong and len({generator.sample_rate is None for generator in opened.values()}) > 1:
            wrong = [
                Problem("models", "expected models of text, or models of sound, but got both. Evaluate them apart.")
            ]
        self.problems += wrong
        return {} if wrong else opened

    def _check_lengths(self, generators: Mapping[str, Generator]) -> None:
        request = self.request
        for model, generator in generators.items():
            length, found = asked_length(generator, request.max_new_tokens, request.seconds)
            self.problems += found
            self.lengths[model] = TOKENS if length is None else length
            self.problems += problems_of_anneal(request.anneal, generator)
            for temperature in request.temperature:
                self.problems += problems_of_sampling(self.sampling(model, temperature), generator.longest_sample)
            try:
                self.renderers[model], remarks = renderer_of(model, request.trust)
                self.remarks += remarks
            except ConfigError as error:
                self.problems += at_key("models", error.problems)
        guided = dict.fromkeys((point.model, point.guidance) for point in request.points)
        for model, scale in guided if not self.problems else ():
            found = problems_of_lengths(
                generators[model], self.prompts, self.sampling(model), request.guidance_of(scale)
            )
            for each in found:  # what a prompt lacks is said once for all models
                other = replace(each, text=f"model `{model}`: {each.text}")
                self.problems += at_key("prompts", [each]) if isinstance(each, PromptProblem) else [other]

    def _choose_metrics(self, generators: Sequence[Generator]) -> None:
        request = self.request
        context = Context(samples=request.samples, length=request.max_new_tokens)
        try:
            if request.metrics is not None:
                self.metrics = read_metrics(request.metrics, context)
            elif generators:
                specs, remarks = default_metrics(generators, request.trust)
                self.remarks += remarks
                self.metrics = metrics_of(specs, context)
        except ConfigError as error:
            self.problems += at_key("metrics", error.problems)
        self.problems += problems_of_group(self.metrics, context)
        texts = [str(prompt) for prompt in self.prompts]
        for problem in problems_of_metrics_on(self.metrics, texts):
            self.problems += at_key("metrics" if problem.path else "prompts", [problem])

    def sampling(self, model: str, temperature: float = 1.0) -> Sampling:
        """How a model is sampled."""
        request = self.request
        return Sampling(request.samples, self.lengths[model], temperature, request.top_k, request.top_p)
