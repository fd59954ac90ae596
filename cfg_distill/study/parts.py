"""The parts of a study file: fits, merges, systems and sweeps of them, the evaluation, the claims. No torch in here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal

from cfg_distill.evaluation.anneal import Anneal, GuidanceCourse
from cfg_distill.evaluation.headline import Headline
from cfg_distill.merging import METHODS
from cfg_distill.recipe import Recipe
from cfg_distill.recipe.overrides import word_of

Dtype = Literal["float32", "bfloat16", "float16"]
Stage = Literal["report", "development"]
Drop = Literal["prompt", "last_token"]
OPEN = ("temperature", "dtype", "top_k", "top_p", "min_p")
"""Settings of a system that are the evaluation's where the system names none."""
LATER = ("anneal", "conditioner", "dial", "drop", "schedule")
NOT_IN_0_1 = ("top_k", "top_p", "min_p", "prompt", *LATER)
"""Settings of a system that version 0.1 did not have. One that is not given must not make its results look stale."""


@dataclass
class Fit:
    """One fit: the very command a user would type.

    Args:
        config: the recipe.
        overlays: further recipes, laid over it in their order.
        overrides: dotted key -> value, as on the command line.
        start: an earlier fit of this study, or a model folder, whose weights the student begins with.
        seed_offset: added to the training seed, so that fits of one recipe differ and a merge can average them (a soup).
        evaluate: false for a step on the way, such as a part of a soup: it is made, and it is no system.
    """

    config: str
    overrides: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    overlays: list[str] = field(default_factory=list)
    seed_offset: int = 0
    evaluate: bool = True

    @property
    def files(self) -> list[str]:
        """The recipe and what is laid over it."""
        return [self.config, *self.overlays]

    @property
    def words(self) -> list[str]:
        """The words a user would type after ``cfg-distill``."""
        words = ["fit", *(word for file in self.files for word in ("--config", file))]
        return [*words, *(f"--{key}={word_of(value)}" for key, value in self.overrides.items())]

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with the overrides in it. It is read once, when it is first asked for.

        Raises:
            ConfigError: there is no such recipe, or it cannot be read.
        """
        return Recipe.read(self.files, self.overrides)


@dataclass
class Merge:
    """One merge of fits, earlier merges or model folders.

    Args:
        models: their names.
        weights: as the method asks.
        method: see ``cfg-distill merge``.
        start: the model that all others were trained from, for the methods that need it.
        evaluate: false for a step on the way: it is made, and it is no system.
    """

    models: list[str]
    weights: list[float] = field(default_factory=list)
    method: str = "lerp"
    start: str = ""
    evaluate: bool = True

    @property
    def on_line(self) -> bool:
        """Whether it is a setting of the knob of two models: weights of both, which sum to 1."""
        shares = self.method in METHODS and METHODS[self.method].weights in ("shares", "line")
        return shares and len(self.models) == len(self.weights) == 2


@dataclass
class SystemConfig:
    """A model and how it is sampled.

    Args:
        model: a fit, a merge, a model folder or hub name.
        temperature: of sampling; None takes ``evaluation.temperature``.
        guidance: its scale; 1 is none, any other costs two forward passes per token.
        negative: the negative prompt; None drops the prompt.
        negative_system: the system message of the negative branch, which then keeps the prompt.
        dtype: of the weights; None takes ``evaluation.dtype``.
        top_k: keep the k likeliest tokens; None takes ``evaluation.top_k``.
        top_p: keep the likeliest tokens whose probabilities first reach p; None takes ``evaluation.top_p``.
        min_p: keep the tokens at least this many times as likely as the likeliest; None takes ``evaluation.min_p``.
        prompt: a template that every prompt is put into, in place of ``{prompt}``: a baseline that asks for variety, say.
            Metrics see the prompt as it was. None for none.
        anneal: begin the samples by a start model; None for the model alone.
        conditioner: class_path and init_args of a Conditioner, for a student that was trained with one; None for none. Metrics
            see the prompts alone.
        dial: what the change of an adapter is multiplied by; of one that was trained with a dial, 0 is no guidance and 1 all of
            it. None for the adapter as it is.
        drop: what a dropped prompt leaves under guidance; None for nothing of it.
        schedule: how guidance moves over the positions, up or down to its scale; None for one scale at all positions.
    """

    model: str
    temperature: float | None = None
    guidance: float = 1.0
    negative: str | None = None
    negative_system: str | None = None
    dtype: Dtype | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    prompt: str | None = None
    anneal: Anneal | None = None
    conditioner: dict[str, Any] | None = None
    dial: float | None = None
    drop: Drop | None = None
    schedule: GuidanceCourse | None = None

    @property
    def models(self) -> list[str]:
        """The models that its samples take: its own, and the start model where there is one."""
        return [self.model] if self.anneal is None else [self.model, self.anneal.base]


@dataclass
class Sweep:
    """Baselines of one model over ranges of settings: every temperature with every guidance, then each filter alone.

    A sweep ``base`` makes systems named ``base T 0.6``, ``base guidance 2 T 0.6``, ``base top-p 0.9`` and ``base min-p 0.1``. A
    setting that ``baselines`` names already is not sampled twice.

    Args:
        model: a model folder or hub name.
        temperature: of sampling; none takes ``evaluation.temperature``.
        guidance: scales; 1 is none.
        top_p: each with no guidance, at ``evaluation.temperature``.
        min_p: each with no guidance, at ``evaluation.temperature``.
        negative: the negative prompt; None drops the prompt.
        negative_system: the system message of the negative branch, which then keeps the prompt.
        dtype: of the weights; None takes ``evaluation.dtype``.
    """

    model: str
    temperature: list[float] = field(default_factory=list)
    guidance: list[float] = field(default_factory=list)
    top_p: list[float] = field(default_factory=list)
    min_p: list[float] = field(default_factory=list)
    negative: str | None = None
    negative_system: str | None = None
    dtype: Dtype | None = None

    def systems(self, name: str) -> dict[str, SystemConfig]:
        """The baselines, by name.

        Example:
            >>> list(Sweep("tunes:base", temperature=[0.6, 1], guidance=[1, 2], min_p=[0.1]).systems("base"))
            ['base T 0.6', 'base T 1', 'base guidance 2 T 0.6', 'base guidance 2 T 1', 'base min-p 0.1']
        """
        plain = SystemConfig(self.model, dtype=self.dtype)
        found: dict[str, SystemConfig] = {}
        temperatures: list[float | None] = [*self.temperature] or [None]
        for scale, temperature in product(self.guidance or [1.0], temperatures):
            if not self.guidance and temperature is None:
                continue  # a sweep of filters alone
            system = dataclasses.replace(plain, temperature=temperature, guidance=scale)
            words = [name] if temperature is None else [name, f"T {temperature:g}"]
            if scale != 1:
                system = dataclasses.replace(system, negative=self.negative, negative_system=self.negative_system)
                words.insert(1, f"guidance {scale:g}")
            found[" ".join(words)] = system
        for p in self.top_p:
            found[f"{name} top-p {p:g}"] = dataclasses.replace(plain, top_p=p)
        for p in self.min_p:
            found[f"{name} min-p {p:g}"] = dataclasses.replace(plain, min_p=p)
        return found


@dataclass
class Evaluation:
    """How every system is sampled and scored.

    Args:
        prompts: a file of held-out prompts, for the report: no fit, and no choice, may have seen them.
        metrics: name -> class_path and init_args of a SampleMetric; or a YAML file of these.
        headline: the metrics that the picture and the claims are about.
        field: the JSON field or CSV column that holds the prompt.
        samples: samples per prompt and seed.
        seeds: of sampling.
        max_new_tokens: the longest sample.
        temperature: of sampling, for every fit and merge, and every system that names none.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities first reach p; 1 keeps all.
        min_p: keep the tokens at least this many times as likely as the likeliest; 0 keeps all.
        batch_size: prompts at once.
        development: a file of other prompts, for every choice that is made on the way: settings, knobs, systems to report.
        stage: ``report`` samples ``prompts``; ``development`` samples the development prompts, and leaves the others untouched.
        timing: rows at which the time per sample is measured, for the base, its guidance and a student; empty for none.
        ladder: whose real and degenerate samples are rows of the table, so that the range of each metric shows: ``tunes``,
            ``text``, ``sound`` or the class path of a ladder; ``model`` for the one that the folder of the first baseline
            names, if it names one; ``none`` for no such rows.
        audio: the form of written sound: ``flac`` loses nothing, ``ogg`` is smallest; WAV where the audio extra is missing.
        written: prompts of which samples are written to be read and heard.
        written_samples: samples of each such prompt that are written.
        dtype: of the weights of every system that names none; a recipe's dtype is for training alone.
    """

    prompts: str
    metrics: dict[str, Any]
    headline: Headline
    field: str = "prompt"
    samples: int = 8
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 8
    written: int = 12
    written_samples: int = 2
    dtype: Dtype = "float32"
    min_p: float = 0.0
    development: str = ""
    stage: Stage = "report"
    timing: list[int] = dataclasses.field(default_factory=lambda: [1, 4, 32])
    ladder: str = "model"
    audio: Literal["wav", "flac", "ogg"] = "flac"

    @property
    def sampled(self) -> str:
        """The file of the prompts that are sampled."""
        return self.development if self.stage == "development" else self.prompts


@dataclass
class Claims:
    """What the study sets out to show, written down before its results: which systems the claims are about, and the bounds.

    Every name is the name of a system.

    Args:
        start: the base, sampled without guidance.
        guidance: the base under the guidance to reach, mostly the one that was distilled.
        quality: the student of beta 0.
        diversity: the student of beta above 0; null where the study has none, and then claim C3 is left out.
        merge: the merge of the two whose knob was chosen, on other prompts; null leaves out C4a and C4b.
        margin: a quality counts as reached when the whole interval of the difference lies above minus this.
        guards: metric -> bound, for every student that a claim is about: ``< 0.02``, or relative to ``start``:
            ``<= base + 0.01``, ``< base * 1.5``. A claim fails when a guard of its student fails.
    """

    start: str
    guidance: str
    quality: str
    margin: float
    diversity: str | None = None
    merge: str | None = None
    guards: dict[str, str] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, str]:
        """Key -> system, of those that are named."""
        asked = {key: getattr(self, key) for key in ("start", "guidance", "quality", "diversity", "merge")}
        return {key: name for key, name in asked.items() if name is not None}

    @property
    def shown(self) -> str:
        """The student that the picture and the mixtures are about: the merge, or what comes nearest to one."""
        return self.merge or self.diversity or self.quality
