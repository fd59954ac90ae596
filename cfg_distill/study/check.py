"""All problems of a study that can be found without torch: names, numbers, files, prompts that were trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from cfg_distill.data import read_prompts
from cfg_distill.data.reading import normalised
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.folders import find_file, is_adapter, problems_of_folder
from cfg_distill.merging.methods import problems_of_merge
from cfg_distill.study.config import Fit, Study, SystemConfig, unknown_name
from cfg_distill.study.jobs import CheckEvaluation, CheckFit, Job, said_by

LARGEST_SEED = 2**40
"""Evaluation multiplies a seed by a million; the product must fit into 64 bits."""


def problems_of(study: Study) -> list[Problem]:
    """All problems of a study that can be found without torch, by the keys of the study file."""
    fits, problems = _readable(study)
    problems += _problems_of_adapters(study, fits)
    models: list[str] = []
    for name, fit in study.fits.items():
        problems += _problems_of_model(f"fits.{name}.start", fit.start, models) if fit.start else []
        models.append(name)
    for name, merge in study.merges.items():
        key = f"merges.{name}"
        problems += _under(key, problems_of_merge(merge.method, len(merge.models), merge.weights, bool(merge.start)))
        for model in merge.models:
            problems += _problems_of_model(f"{key}.models", model, models)
        if merge.start:
            problems += _problems_of_model(f"{key}.start", merge.start, models)
        if name in study.fits:
            problems.append(Problem(key, f"`{name}` is a fit already. Choose another name."))
        models.append(name)
    for key, systems in (("baselines", study.baselines), ("systems", study.systems)):
        taken = models if key == "baselines" else [*models, *study.baselines]
        problems += [
            Problem(f"{key}.{name}", "the name is taken. Choose another.") for name in systems if name in taken
        ]
        for name, system in systems.items():
            problems += _problems_of_system(f"{key}.{name}", system, models)
    if not study.all_systems():
        problems.append(
            Problem("", "Keys `fits`, `merges`, `baselines`, `systems`: expected at least one system, but got none.")
        )
    if study.parallel < 0:
        problems.append(Problem("parallel", f"expected at least 0 (one per core), but got {study.parallel}."))
    prompts, found = _prompts_of(study)
    return problems + found + _problems_of_evaluation(study) + _problems_of_claims(study) + _trained_on(fits, prompts)


def without_echoes(first: Iterable[Problem], then: Iterable[Problem]) -> list[Problem]:
    """All problems, less those of ``then`` about a key that ``first`` reports already, or about a key beneath it."""
    first = list(first)
    known = [problem.path for problem in first if problem.path]

    def echoes(problem: Problem) -> bool:
        path = problem.path
        return problem in first or any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in known)

    return first + [problem for problem in then if not echoes(problem)]


def generator_modules(fit: Fit) -> list[str]:
    """The module of the generator that the recipe of a fit names: code that the user trusts."""
    return [fit.recipe.generator_class.rpartition(".")[0]]


def command_of(fit: Fit) -> list[str]:
    """The words a user would type after ``cfg-distill``."""
    words = ["fit", "--config", fit.config]
    for key, value in fit.overrides.items():
        words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def jobs_of_checks(study: Study, known: Sequence[Problem] = ()) -> dict[str, Job]:
    """The checks that workers do before anything runs: the evaluation, and each fit under the name ``fits.NAME``.

    Args:
        study: the study.
        known: problems that are known already; the parts that have one are left out.
    """

    def is_fine(key: str) -> bool:
        return not any(problem.path == key or problem.path.startswith(f"{key}.") for problem in known)

    made = {*study.fits, *study.merges}
    groups = {"baselines": study.baselines, "systems": study.systems}
    fine = [system for key, group in groups.items() for name, system in group.items() if is_fine(f"{key}.{name}")]
    models = sorted({system.model for system in fine} - made)
    evaluation, parts = study.evaluation, ("evaluation", "fits", "merges", "baselines", "systems")
    jobs: dict[str, Job] = {}
    if is_fine("evaluation.metrics"):
        sampled = systems_by_folder(study) if all(map(is_fine, parts)) else []
        jobs["evaluation"] = CheckEvaluation(evaluation, models, sampled)
    for name, fit in study.fits.items():
        if fit.config and is_fine(f"fits.{name}.config"):
            jobs[f"fits.{name}"] = CheckFit(command_of(fit))
    return jobs


def systems_by_folder(study: Study) -> list[SystemConfig]:
    """Every system with the folder of its model, each folder once per guidance.

    A student or a merge stands for the folder that its fit begins with: that one is there before the fits.
    """
    found: dict[tuple[Any, ...], SystemConfig] = {}
    for system in study.all_systems().values():
        folder = _folder_of(study, system.model)
        if folder:
            guidance = (system.guidance, system.negative, system.negative_system)
            found.setdefault((folder, *guidance), replace(system, model=folder))
    return list(found.values())


def _folder_of(study: Study, model: str) -> str:
    """The folder behind a model; empty for a generator that has none."""
    if model in study.merges:
        return _folder_of(study, study.merges[model].models[0])
    return study.fits[model].recipe.model_path if model in study.fits else model


def _under(key: str, found: Iterable[Problem | str]) -> list[Problem]:
    return ConfigError(list(found)).under(key)


def _readable(study: Study) -> tuple[dict[str, Fit], list[Problem]]:
    """The fits whose recipes can be read, and why the others cannot."""
    fits, problems = {}, []
    for name, fit in study.fits.items():
        key = f"fits.{name}.config"
        if not find_file(fit.config).is_file():
            text = f"expected a recipe, but `{fit.config}` does not exist. See cfg-distill recipes."
            problems.append(Problem(key, text))
            continue
        try:
            _ = fit.recipe
        except ConfigError as error:
            problems += error.under(key)
        else:
            fits[name] = fit
    return fits, problems


def _problems_of_model(key: str, model: str, earlier: list[str]) -> list[Problem]:
    """A model is one that the study makes earlier, or a folder, or a hub name."""
    if model in earlier:
        return []
    if "/" not in model and ":" not in model and not find_file(model).exists():
        return [unknown_name(key, model, earlier, "a model folder or a fit or merge named further up")]
    return ConfigError(problems_of_folder(key, model)).problems


def _problems_of_adapters(study: Study, fits: dict[str, Fit]) -> list[Problem]:
    """Fits and merges that put LoRA adapters and whole models together. A fit that cannot be read counts as neither."""
    adapters: dict[str, bool | None] = {}

    def kind_of(model: str) -> bool | None:
        return adapters[model] if model in adapters else is_adapter(model)

    problems = []
    for name, fit in study.fits.items():
        adapters[name] = fit.recipe.trains_adapter if name in fits else None
        if adapters[name] and fit.start and kind_of(fit.start) is False:
            problems.append(
                Problem(
                    f"fits.{name}.start",
                    f"expected an adapter, since this fit trains one, but `{fit.start}` is a whole model. Give both fits the"
                    " same `lora`, or neither.",
                )
            )
    for name, merge in study.merges.items():
        kinds = {model: kind_of(model) for model in merge.models}
        adapters[name] = True if True in kinds.values() else None if None in kinds.values() else False
        whole = [model for model, adapter in kinds.items() if adapter is False]
        if adapters[name] and whole:
            problems.append(
                Problem(
                    f"merges.{name}.models",
                    f"expected adapters, or whole models, but only {', '.join(whole)} is a whole one. Give all fits the same"
                    " `lora`, or none.",
                )
            )
    return problems


def _problems_of_system(key: str, system: SystemConfig, models: list[str]) -> list[Problem]:
    problems = _problems_of_model(f"{key}.model", system.model, models)
    if system.temperature is not None:
        problems += _not_a_number_from_0(f"{key}.temperature", system.temperature)
    return problems + _not_a_number_from_0(f"{key}.guidance", system.guidance, " (1 is no guidance)")


def _not_a_number_from_0(key: str, value: float, meaning: str = "") -> list[Problem]:
    if 0 <= value < math.inf:
        return []
    return [Problem(key, f"expected a number of at least 0{meaning}, but got {value}.")]


def _prompts_of(study: Study) -> tuple[list[str], list[Problem]]:
    """The prompts of the report; none when they cannot be read, and why not."""
    given = study.evaluation
    try:
        return [*map(str, read_prompts(given.prompts, given.field))], []
    except ConfigError as error:
        return [], error.under("evaluation.prompts")


def _problems_of_evaluation(study: Study) -> list[Problem]:
    given = study.evaluation
    problems = []
    for name, metric in _headline(study):
        if metric not in given.metrics:
            problems.append(unknown_name(name, metric, given.metrics, "a name under `metrics`"))
    if not given.seeds or len(set(given.seeds)) < len(given.seeds):
        problems.append(Problem("seeds", f"expected one or more different numbers, but got {given.seeds}."))
    if any(abs(seed) > LARGEST_SEED for seed in given.seeds):
        problems.append(Problem("seeds", f"expected whole numbers of at most {LARGEST_SEED}, but got {given.seeds}."))
    if given.samples < 2:
        text = f"expected at least 2, since a single sample per prompt has no diversity, but got {given.samples}."
        problems.append(Problem("samples", text))
    least = {"max_new_tokens": 1, "batch_size": 1, "top_k": 0, "written": 0, "written_samples": 0}
    for name, lowest in least.items():
        value = vars(given)[name]
        if value < lowest:
            problems.append(Problem(name, f"expected at least {lowest}, but got {value}."))
    problems += _not_a_number_from_0("temperature", given.temperature)
    if not 0 < given.top_p <= 1:
        problems.append(
            Problem("top_p", f"expected a number above 0 and up to 1 (1 keeps all), but got {given.top_p}.")
        )
    return _under("evaluation", problems)


def _headline(study: Study) -> Iterator[tuple[str, str]]:
    """Key and metric of each part of the headline that is given."""
    for name, metric in vars(study.evaluation.headline).items():
        if metric is not None:
            yield f"headline.{name}", metric


def _problems_of_claims(study: Study) -> list[Problem]:
    if study.claims is None:
        return []
    known = study.all_systems()
    asked = {key: vars(study.claims)[key] for key in ("start", "guidance", "quality", "diversity", "merge")}
    problems = [unknown_name(key, name, known, "a system") for key, name in asked.items() if name not in known]
    for name in study.claims.temperature:
        if name not in known:
            problems.append(unknown_name("temperature", name, known, "a system"))
        elif study.kind(name) != "base" or known[name].temperature is None:
            problems.append(
                Problem(
                    "temperature",
                    f"expected systems of the base with a temperature of their own and no guidance, but `{name}` is none."
                    " Take it out, or name such a baseline.",
                )
            )
    if not 0 < study.claims.margin < math.inf:
        problems.append(Problem("margin", f"expected a number above 0, but got {study.claims.margin}."))
    return _under("claims", problems)


def _trained_on(fits: dict[str, Fit], prompts: list[str]) -> list[Problem]:
    """Report prompts that a fit trains or validates on: the evaluation would not be held out."""
    held_out = {normalised(prompt) for prompt in prompts}
    problems = []
    for name, fit in fits.items():
        for part, file in fit.recipe.prompt_files.items():
            if part == "report":
                continue  # never trained on
            try:
                seen = read_prompts(file, fit.recipe.prompt_field)
            except ConfigError as error:
                if fit.recipe.at("data.class_path") is None:  # a class of the user may mean anything by `train`
                    problems += said_by(f"fits.{name}", error.under(f"data.{part}"))
                continue
            both = [prompt for prompt in seen if normalised(prompt) in held_out]
            if both:
                problems.append(
                    Problem(
                        "evaluation.prompts",
                        f"expected held-out prompts, but {len(both)} of them are in `data.{part}` of fits.{name}:"
                        f" {both[0]!r}, for one. Take them out of one of the files.",
                    )
                )
    return problems
