"""All problems of a study that can be found without torch: names, numbers, files, prompts that were trained on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator

from cfg_distill.data import read_prompts
from cfg_distill.data.reading import PLACE, PromptLike, in_both
from cfg_distill.errors import ConfigError, Problem, is_beneath, problems_of_positive, problems_of_scale
from cfg_distill.evaluation.guards import Guard
from cfg_distill.folders import find_file, is_adapter, problems_of_folder, similar_file
from cfg_distill.folders.dials import problems_of_dial
from cfg_distill.merging.methods import problems_of_merge
from cfg_distill.study.checking import each_once
from cfg_distill.study.climbing import ladder_of
from cfg_distill.study.config import Study, unknown_name
from cfg_distill.study.parts import Fit, SystemConfig
from cfg_distill.study.rewarded import problems_of_independent

LARGEST_TRAINING_SEED = 2**32 - 1
"""Lightning takes no larger seed."""
RUN = re.compile(r"(^| )seed \d+$")
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
    problems += _problems_of_systems(study, models) + _problems_of_training_seeds(study, fits)
    if not study.all_systems():
        problems.append(
            Problem(
                "",
                "Keys `fits`, `merges`, `baselines`, `sweeps`, `systems`: expected at least one system, but got none.",
            )
        )
    if study.parallel < 0:
        problems.append(Problem("parallel", f"expected at least 0 (one per core), but got {study.parallel}."))
    problems += _problems_of_prompts(study, fits)
    problems += _problems_of_evaluation(study) + _problems_of_claims(study)
    return problems + problems_of_independent(study, fits)


def without_echoes(first: Iterable[Problem], then: Iterable[Problem]) -> list[Problem]:
    """All problems, less those of ``then`` about a key that ``first`` reports already, or about a key beneath it."""
    first = list(first)
    known = [problem.path for problem in first if problem.path]

    def echoes(problem: Problem) -> bool:
        return problem in first or any(is_beneath(problem.path, key) for key in known)

    return first + [problem for problem in then if not echoes(problem)]


def _under(key: str, found: Iterable[Problem | str]) -> list[Problem]:
    return ConfigError(list(found)).under(key)


def _readable(study: Study) -> tuple[dict[str, Fit], list[Problem]]:
    """The fits whose recipes can be read, and why the others cannot."""
    fits, problems = {}, []
    for name, fit in study.fits.items():
        key = f"fits.{name}.config"
        if missing := [file for file in fit.files if not find_file(file).is_file()]:
            hint = similar_file(missing[0]) or " See cfg-distill recipes."
            text = f"expected a recipe, but `{missing[0]}` does not exist.{hint}"
            problems.append(Problem(key if missing[0] == fit.config else f"fits.{name}.overlays", text))
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
    return [problem.under(key) for problem in problems_of_folder(model)]


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
    for key, systems in (("baselines", study.baselines), ("systems", study.systems)):
        for name, system in systems.items():
            scaled = kind_of(system.model) is not False
            problems += problems_of_dial(system.model, system.dial, scaled, f"{key}.{name}.dial")
    return problems


def _problems_of_systems(study: Study, models: list[str]) -> list[Problem]:
    """Problems of baselines, sweeps and further systems.

    Args:
        study: the study.
        models: the names of fits and merges.
    """
    problems = []
    taken: dict[str, SystemConfig | None] = dict.fromkeys(models)
    groups = {f"sweeps.{name}": sweep.systems(name) for name, sweep in study.sweeps.items()}
    for key, systems in {"baselines": study.baselines, **groups, "systems": study.systems}.items():
        swept = key.startswith("sweeps.")
        for name in [name for name in systems if name in taken]:
            if not swept:
                problems.append(Problem(f"{key}.{name}", "the name is taken. Choose another."))
            elif (other := taken[name]) is None or study.settled(systems[name]) != study.settled(other):
                text = f"makes the system `{name}`, and the name is taken. Rename the sweep."
                problems.append(Problem(key, text))
        taken |= systems
        for name, system in systems.items():
            problems += _problems_of_system(key if swept else f"{key}.{name}", system, models)
        if swept and not systems:
            problems.append(Problem(key, "expected temperature, guidance, top_p or min_p, but it has none. Add some."))
    return list(dict.fromkeys(problems))


def _problems_of_system(key: str, system: SystemConfig, models: list[str]) -> list[Problem]:
    problems = _problems_of_model(f"{key}.model", system.model, models)
    if system.anneal is not None:
        problems += _problems_of_model(f"{key}.anneal.base", system.anneal.base, models)
    if system.temperature is not None:
        problems += _not_a_number_from_0(f"{key}.temperature", system.temperature)
    if system.prompt is not None and PLACE not in system.prompt:
        text = f"expected a template with `{PLACE}`, where each prompt is put in, but got `{system.prompt}`."
        problems.append(Problem(f"{key}.prompt", text))
    if system.schedule is not None and system.guidance == 1:
        text = "expected a scale that the schedule moves to, but got 1, which is no guidance. Set it, or leave `schedule` out."
        problems.append(Problem(f"{key}.guidance", text))
    given = {name: vars(system)[name] for name in ("top_k", "top_p", "min_p") if vars(system)[name] is not None}
    problems += _problems_of_filters(key, **given)
    return problems + problems_of_scale(f"{key}.guidance", system.guidance)


def _problems_of_filters(key: str, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[Problem]:
    problems = []
    if top_k < 0:
        problems.append(Problem("top_k", f"expected at least 0, but got {top_k}."))
    if not 0 < top_p <= 1:
        problems.append(Problem("top_p", f"expected a number above 0 and up to 1 (1 keeps all), but got {top_p}."))
    if not 0 <= min_p <= 1:
        problems.append(Problem("min_p", f"expected a number from 0 (keeps all) to 1, but got {min_p}."))
    return _under(key, problems)


def _problems_of_training_seeds(study: Study, fits: dict[str, Fit]) -> list[Problem]:
    """Seeds that are no seeds, recipes that would ignore them, and names that mean a run of another fit."""
    seeds, problems = study.training_seeds, []
    if len(set(seeds)) < len(seeds) or any(not 0 <= seed <= LARGEST_TRAINING_SEED for seed in seeds):
        text = f"expected different whole numbers from 0 to {LARGEST_TRAINING_SEED}, but got {seeds}."
        problems.append(Problem("training_seeds", text))
    for name, fit in fits.items():
        for key in ("model.seed", "data.seed", "data.init_args.seed"):
            if seeds and fit.recipe.at(key) is not None:
                text = (
                    f"its recipe sets `{key}`, so the training seeds would change less than they say. Remove that key."
                )
                problems.append(Problem(f"fits.{name}", text))
    problems += _problems_of_offsets(study, fits)
    if study.replicated:
        problems += [
            Problem(key, f"`{name}` ends like the folders of training seeds. Choose another name.")
            for key, names in (
                ("fits", study.fits),
                ("merges", study.merges),
                ("systems", study.systems),
                ("baselines", study.baselines),
            )
            for name in names
            if RUN.search(name)
        ]
    return problems


def _problems_of_offsets(study: Study, fits: dict[str, Fit]) -> list[Problem]:
    """Offsets that do nothing, leave the range of seeds or meet another training seed; and fits that are one fit twice."""
    seeds, problems = study.training_seeds, []
    first: dict[str, str] = {}
    taken = {0: set(seeds)} | {each.seed_offset: {seed + each.seed_offset for seed in seeds} for each in fits.values()}
    for name, fit in fits.items():
        key, offset = f"fits.{name}.seed_offset", fit.seed_offset
        same = first.setdefault(json.dumps([fit.recipe.values, fit.start, offset], default=str), name)
        if same != name and seeds:
            text = f"expected another number than {offset}, with which this is the same fit as `{same}`."
            problems.append(Problem(key, text))
        if offset and not seeds:
            problems.append(
                Problem(key, "it is added to the training seeds, but `training_seeds` names none. Name one.")
            )
        elif offset and any(not 0 <= seed + offset <= LARGEST_TRAINING_SEED for seed in seeds):
            text = f"expected training seeds from 0 to {LARGEST_TRAINING_SEED} with it, but got {offset} for {seeds}."
            problems.append(Problem(key, text))
        elif any(taken[offset] & others for other, others in taken.items() if other < offset):
            text = f"expected a number that leads to no seed of another fit, but got {offset} for {seeds}. Try 1000 or more."
            problems.append(Problem(key, text))
    return problems


def _not_a_number_from_0(key: str, value: float) -> list[Problem]:
    return [] if 0 <= value < math.inf else [Problem(key, f"expected a number of at least 0, but got {value}.")]


def _problems_of_prompts(study: Study, fits: dict[str, Fit]) -> list[Problem]:
    """Prompt files that cannot be read, and prompts of the report that were trained or tuned on."""
    given, problems = study.evaluation, []
    held_out: dict[str, list[PromptLike]] = {}
    for key in ("prompts", "development"):
        file = vars(given)[key]
        if key == "development" and not file:
            continue
        try:
            held_out[key] = read_prompts(file, given.field)
        except ConfigError as error:
            problems += error.under(f"evaluation.{key}")
    if given.stage == "development" and not given.development:
        problems.append(
            Problem("evaluation.development", "expected a file, since `evaluation.stage` samples it, but got none.")
        )
    found = in_both(held_out.get("prompts", []), held_out.get("development", []))
    if found:
        text = (
            f"expected prompts that no choice was made on, but {len(found)} of them are in `evaluation.development`:"
            f" {found[0]!r}, for one. Take them out of one of the files."
        )
        problems.append(Problem("evaluation.prompts", text))
    return problems + _trained_on(fits, held_out)


def _problems_of_evaluation(study: Study) -> list[Problem]:
    given = study.evaluation
    problems = [each for name, metric in _headline(study) for each in _unknown_metric(study, name, metric)]
    if not given.metrics:
        problems.append(Problem("metrics", "expected metrics, name -> class_path and init_args, but there is none."))
    if not given.seeds or len(set(given.seeds)) < len(given.seeds):
        problems.append(Problem("seeds", f"expected one or more different numbers, but got {given.seeds}."))
    if any(abs(seed) > LARGEST_SEED for seed in given.seeds):
        problems.append(Problem("seeds", f"expected whole numbers of at most {LARGEST_SEED}, but got {given.seeds}."))
    if given.samples < 2:
        text = f"expected at least 2, since a single sample per prompt has no diversity, but got {given.samples}."
        problems.append(Problem("samples", text))
    least = {"max_new_tokens": 1, "batch_size": 1, "written": 0, "written_samples": 0}
    for name, lowest in least.items():
        value = vars(given)[name]
        if value < lowest:
            problems.append(Problem(name, f"expected at least {lowest}, but got {value}."))
    problems += _not_a_number_from_0("temperature", given.temperature)
    problems += _problems_of_filters("", given.top_k, given.top_p, given.min_p)
    try:
        ladder_of(study)
    except ConfigError as error:
        problems += error.under("ladder")
    if any(rows < 1 for rows in given.timing):
        problems.append(Problem("timing", f"expected numbers of rows, each at least 1, but got {given.timing}."))
    return _under("evaluation", problems)


def _headline(study: Study) -> Iterator[tuple[str, str]]:
    """Key and metric of each part of the headline that is given."""
    for name, metric in vars(study.evaluation.headline).items():
        if metric is not None:
            yield f"headline.{name}", metric


def _unknown_metric(study: Study, key: str, metric: str) -> list[Problem]:
    known = study.evaluation.metrics
    if metric in known or not known:  # without metrics that is the problem, once, and not every name of one
        return []
    return [unknown_name(key, metric, known, "a name under `metrics`")]


def _problems_of_claims(study: Study) -> list[Problem]:
    if study.claims is None:
        return []
    known = study.all_systems()
    made = study.fits | study.merges
    problems = [
        Problem(key, f"expected a system, but `{name}` has `evaluate: false`. Remove that, or name another system.")
        if name in made and not made[name].evaluate
        else unknown_name(key, name, known, "a system")
        for key, name in study.claims.named.items()
        if name not in known
    ]
    for metric, bound in study.claims.guards.items():
        problems += _unknown_metric(study, f"guards.{metric}", metric)
        try:
            Guard.parse(metric, bound)
        except ConfigError as error:
            problems += error.under(f"guards.{metric}")
    problems += problems_of_positive(margin=study.claims.margin)
    return _under("claims", problems)


def _trained_on(fits: dict[str, Fit], held_out: dict[str, list[PromptLike]]) -> list[Problem]:
    """Prompts of the report that a fit trains or validates on, and development prompts that it trains on.

    Args:
        fits: that can be read.
        held_out: ``prompts`` and ``development``, as far as they can be read.
    """
    problems = []
    unread: dict[Problem, list[str]] = {}
    for name, fit in fits.items():
        for part, file in fit.recipe.prompt_files.items():
            if part == "report":
                continue  # never trained on
            try:
                seen = read_prompts(file, fit.recipe.prompt_field)
            except ConfigError as error:
                if fit.recipe.at("data.class_path") is None:  # a class of the user may mean anything by `train`
                    for problem in error.under(f"data.{part}"):
                        unread.setdefault(problem, []).append(f"fits.{name}")
                continue
            for key, prompts in held_out.items():
                both = [] if (key, part) == ("development", "validation") else in_both(prompts, seen)
                if not both:
                    continue
                problems.append(
                    Problem(
                        f"evaluation.{key}",
                        f"expected held-out prompts, but {len(both)} of them are in `data.{part}` of fits.{name}:"
                        f" {both[0]!r}, for one. Take them out of one of the files.",
                    )
                )
    return problems + each_once(unread)
