"""All problems of a study that can be found without torch: names, files, prompts that were trained on."""

from __future__ import annotations

import json
from typing import Any

from cfg_distill.data import read_prompts
from cfg_distill.data.reading import normalised
from cfg_distill.errors import ConfigError
from cfg_distill.folders import find_file, is_adapter, problems_of_folder
from cfg_distill.merging.methods import problems_of_merge
from cfg_distill.recipe import merge, merged
from cfg_distill.study.config import Fit, Point, Study, unknown_name


def problems_of(study: Study) -> list[str]:
    """What is wrong with a study, a sentence each."""
    problems: list[str] = _problems_of_adapters(study)
    models: list[str] = []
    for name, fit in study.fits.items():
        problems += _problems_of_fit(f"fits.{name}", fit, models)
        models.append(name)
    for name, merge_ in study.merges.items():
        key = f"merges.{name}"
        found = problems_of_merge(merge_.method, len(merge_.models), merge_.weights, bool(merge_.start))
        problems += [problem.replace("Key `", f"Key `{key}.", 1) for problem in found]
        for model in merge_.models:
            problems += _problems_of_model(f"{key}.models", model, models)
        if merge_.start:
            problems += _problems_of_model(f"{key}.start", merge_.start, models)
        if name in study.fits:
            problems.append(f"Key `{key}`: `{name}` is a fit already. Choose another name.")
        models.append(name)
    for key, points in (("baselines", study.baselines), ("systems", study.systems)):
        taken = models if key == "baselines" else [*models, *study.baselines]
        problems += [f"Key `{key}.{name}`: the name is taken. Choose another." for name in points if name in taken]
        for name, point in points.items():
            problems += _problems_of_point(f"{key}.{name}", point, models)
    if not study.points():
        problems.append("Keys `fits`, `merges`, `baselines`, `systems`: expected at least one system, but got none.")
    return problems + _problems_of_evaluation(study) + _problems_of_claims(study) + _trained_on(study)


def recipe_of(fit: Fit) -> dict[str, Any]:
    """The recipe of a fit with its overrides, as one nested dict."""
    recipe = merged([find_file(fit.config)])
    for key, value in fit.overrides.items():
        nested: Any = value
        for part in reversed(str(key).split(".")):
            nested = {part: nested}
        recipe = merge(recipe, nested)
    return recipe


def generator_modules(fit: Fit) -> list[str]:
    """The module of the generator that the recipe of a fit names: code that the user trusts."""
    generator: Any = (recipe_of(fit).get("model") or {}).get("generator") or {}
    class_path = generator.get("class_path", "") if isinstance(generator, dict) else generator
    return [str(class_path).rpartition(".")[0]]


def command_of(fit: Fit) -> list[str]:
    """The words a user would type after ``cfg-distill``."""
    words = ["fit", "--config", fit.config]
    for key, value in fit.overrides.items():
        words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def guidances_of(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """The folder and the guidance of every system, each pair once; a student stands for the folder its fit begins with."""
    found = []
    for point in study.points().values():
        guidance = {"scale": point.guidance, "negative": point.negative, "negative_system": point.negative_system}
        folder = _folder_of(study, point.model)
        if folder and (folder, guidance) not in found:
            found.append((folder, guidance))
    return found


def _folder_of(study: Study, model: str) -> str:
    """The folder behind a model, which is there before the fits; empty for a generator that has none."""
    if model in study.merges:
        return _folder_of(study, study.merges[model].models[0])
    if model not in study.fits:
        return model
    generator: Any = (recipe_of(study.fits[model]).get("model") or {}).get("generator") or {}
    return str((generator.get("init_args") or generator).get("path", ""))


def _problems_of_fit(key: str, fit: Fit, earlier: list[str]) -> list[str]:
    problems = []
    if not find_file(fit.config).is_file():
        problems.append(
            f"Key `{key}.config`: expected a recipe, but `{fit.config}` does not exist. See cfg-distill recipes."
        )
    else:
        try:
            recipe_of(fit)
        except ConfigError as error:
            problems += [f"Key `{key}.config`: {problem}" for problem in error.problems]
    if fit.start:
        problems += _problems_of_model(f"{key}.start", fit.start, earlier)
    return problems


def _problems_of_model(key: str, model: str, earlier: list[str]) -> list[str]:
    """A model is one that the study makes earlier, or a folder, or a hub name."""
    if model in earlier:
        return []
    if "/" not in model and ":" not in model and not find_file(model).exists():
        return [unknown_name(key, model, earlier, "a model folder or a fit or merge named further up")]
    return problems_of_folder(key, model)


def _problems_of_adapters(study: Study) -> list[str]:
    """Fits and merges that put LoRA adapters and whole models together."""
    adapters: dict[str, bool] = {}
    problems = []
    for name, fit in study.fits.items():
        adapters[name] = _trains_adapter(fit)
        if adapters[name] and fit.start and not _is_adapter(fit.start, adapters):
            problems.append(
                f"Key `fits.{name}.start`: expected an adapter, since this fit trains one, but `{fit.start}` is a whole model."
                " Give both fits the same `lora`, or neither."
            )
    for name, merge_ in study.merges.items():
        kinds = [_is_adapter(model, adapters) for model in merge_.models]
        adapters[name] = any(kinds)
        if any(kinds) and not all(kinds):
            whole = [model for model, adapter in zip(merge_.models, kinds, strict=True) if not adapter]
            problems.append(
                f"Key `merges.{name}.models`: expected adapters, or whole models, but only {', '.join(whole)} is a whole one."
                " Give all fits the same `lora`, or none."
            )
    return problems


def _is_adapter(model: str, made: dict[str, bool]) -> bool:
    return made[model] if model in made else is_adapter(model)


def _trains_adapter(fit: Fit) -> bool:
    try:
        inner: Any = recipe_of(fit)
    except (ConfigError, FileNotFoundError):
        return False  # reported where it is named
    for key in ("model", "generator", "lora"):
        inner = inner.get(key) if isinstance(inner, dict) else None
        inner = inner.get("init_args", inner) if isinstance(inner, dict) else inner
    return bool(inner)


def _problems_of_point(key: str, point: Point, models: list[str]) -> list[str]:
    problems = _problems_of_model(f"{key}.model", point.model, models)
    if point.temperature is not None and point.temperature < 0:
        problems.append(f"Key `{key}.temperature`: expected a number of at least 0, but got {point.temperature}.")
    if not point.guidance >= 0:
        problems.append(f"Key `{key}.guidance`: expected a number of at least 0 (1 is none), but got {point.guidance}.")
    return problems


def _problems_of_evaluation(study: Study) -> list[str]:
    given = study.evaluation
    problems = []
    try:
        read_prompts(given.prompts, given.field)
    except ConfigError as error:
        problems += [f"Key `evaluation.prompts`: {problem}" for problem in error.problems]
    for name in ("quality", "diversity", "independent"):
        metric = getattr(given.headline, name)
        if metric is not None and metric not in given.metrics:
            problems.append(
                unknown_name(f"evaluation.headline.{name}", metric, given.metrics, "a name under `metrics`")
            )
    if not given.seeds or len(set(given.seeds)) < len(given.seeds):
        problems.append(f"Key `evaluation.seeds`: expected one or more different numbers, but got {given.seeds}.")
    for name in ("samples", "max_new_tokens", "batch_size"):
        if getattr(given, name) < 1:
            problems.append(f"Key `evaluation.{name}`: expected at least 1, but got {getattr(given, name)}.")
    if given.temperature < 0:
        problems.append(f"Key `evaluation.temperature`: expected a number of at least 0, but got {given.temperature}.")
    return problems


def _problems_of_claims(study: Study) -> list[str]:
    if study.claims is None:
        return []
    known = study.points()
    names = ("start", "guidance", "quality", "diversity", "merge")
    asked = {name: getattr(study.claims, name) for name in names}
    problems = [
        unknown_name(f"claims.{key}", name, known, "a system") for key, name in asked.items() if name not in known
    ]
    for name in study.claims.temperature:
        key = "claims.temperature"
        if name not in known:
            problems.append(unknown_name(key, name, known, "a system"))
        elif study.kind(name) != "base" or known[name].temperature is None:
            problems.append(
                f"Key `{key}`: expected systems of the base with a temperature of their own and no guidance, but `{name}` is"
                " none. Take it out, or name such a baseline."
            )
    if not study.claims.margin > 0:
        problems.append(f"Key `claims.margin`: expected a number above 0, but got {study.claims.margin}.")
    return problems


def _trained_on(study: Study) -> list[str]:
    """Report prompts that a fit trains or validates on: the evaluation would not be held out."""
    problems = []
    for name, fit in study.fits.items():
        try:
            data = recipe_of(fit).get("data") or {}
            data = data.get("init_args", data)
            held_out = {normalised(p) for p in read_prompts(study.evaluation.prompts, study.evaluation.field)}
            for part in ("train", "validation"):
                seen = read_prompts(data[part], data.get("field", "prompt")) if data.get(part) else []
                both = [prompt for prompt in seen if normalised(prompt) in held_out]
                if both:
                    problems.append(
                        f"Key `evaluation.prompts`: expected held-out prompts, but {len(both)} of them are in"
                        f" `data.{part}` of fits.{name}: {both[0]!r}, for one. Take them out of one of the files."
                    )
        except (ConfigError, FileNotFoundError):
            continue  # a missing file is reported where it is named
    return problems
