"""What workers do: check, export, merge, evaluate, draw the front. Importing this module imports torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from cfg_distill import checkpoints
from cfg_distill.data import read_prompts
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import System
from cfg_distill.evaluation import evaluate as evaluate_system
from cfg_distill.evaluation.headline import Headline
from cfg_distill.evaluation.models import metrics_of, write_front
from cfg_distill.evaluation.written import Writer
from cfg_distill.generators import device, open_generator
from cfg_distill.guidance import Guidance
from cfg_distill.merging import merge_folders
from cfg_distill.recipe.files import merged, with_recipes_found
from cfg_distill.sampling import Sampling, problems_of_lengths
from cfg_distill.study.claims import finding, judge
from cfg_distill.study.config import Claims

transformers_logging.disable_progress_bar()

Report = Callable[[float], None]

_kept: dict[str, Any] = {}
"""The metrics, for the next job of this worker: loading them takes longer than many a job."""


def check(
    report: Report,
    metrics: Mapping[str, Any],
    headline: Mapping[str, Any],
    models: Sequence[str],
    max_new_tokens: int,
    prompts: str,
    field: str,
    guidances: Sequence[tuple[str, Mapping[str, Any]]],
) -> None:
    """What only torch can tell: metrics by class path, models that are there already, prompts that are too long.

    Args:
        guidances: folder and guidance of every system; a student or merge stands for the folder that its fit begins with.

    Raises:
        ConfigError: all problems.
    """
    problems = []
    try:
        axes = {name: metric.axis for name, metric in metrics_of(metrics).items()}
    except ConfigError as error:
        problems += error.problems
    else:
        for key, name in headline.items():
            wanted = "quality" if key == "quality" else "diversity"
            if name is not None and axes[name] != wanted:
                problems.append(
                    f"Key `evaluation.headline.{key}`: expected a metric of {wanted}, but `{name}` is one of"
                    f" {axes[name]}."
                )
    sampling = Sampling(max_new_tokens=max_new_tokens)
    for model in models:
        generator = open_generator(model)
        found = generator.problems()
        problems += found or sampling.problems(generator.longest_sample, key="evaluation")
    asked = read_prompts(prompts, field)
    for model, guidance in guidances if not problems else ():
        generator = open_generator(model)
        if not generator.problems():  # those of a fit's start are told with its recipe
            found = problems_of_lengths(generator, asked, sampling, Guidance(**guidance))
            problems += [f"Model `{model}`: {text.replace('Key `max', 'Key `evaluation.max')}" for text in found]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def accelerator(report: Report) -> dict[str, bool]:
    """Whether there is one."""
    return {"accelerator": device().type != "cpu"}


def check_fit(report: Report, words: Sequence[str]) -> None:
    """All problems of a recipe with its overrides, as ``cfg-distill fit`` finds them; nothing is loaded.

    Raises:
        ConfigError: all problems.
    """
    from cfg_distill.recipe.command_line import start

    given, files = with_recipes_found(words[1:])
    start("fit", given, files, merged(files), check_only=True)


def export(report: Report, fit: str, out: str, trust: Sequence[str] = ()) -> None:
    """The student of a finished fit as a plain folder: the averages of StudentEMA when it has them.

    Args:
        trust: the module of the generator that the recipe names.
    """
    checkpoint = json.loads((Path(fit) / "done.json").read_text(encoding="utf-8"))["checkpoint"]
    print(checkpoints.export(checkpoint, out, overwrite=True, trust=trust))


def merge(report: Report, models: Sequence[str], weights: Sequence[float], method: str, start: str, out: str) -> None:
    """A merge of folders."""
    merge_folders(models, weights, method, out, start=start or None, overwrite=True)


def evaluate(
    report: Report,
    name: str,
    kind: Any,
    model: str,
    guidance: Mapping[str, Any],
    prompts: str,
    field: str,
    metrics: Mapping[str, Any],
    seeds: Sequence[int],
    batch_size: int,
    file: str,
    samples_folder: str,
    written: int,
    written_samples: int,
    dtype: str = "float32",
    **sampling: Any,
) -> None:
    """One point of the front, its values and some samples."""
    specs = json.dumps(metrics, sort_keys=True)
    if _kept.get("specs") != specs:
        # Moved first: loading may embed a folder of sound, on the metric's device.
        loaded = {name: metric.to(device()).load() for name, metric in metrics_of(metrics).items()}
        _kept.update(specs=specs, metrics=loaded)
    generator = open_generator(model, dtype=dtype).load().to(device())
    writer = Writer(generator, Path(samples_folder), written, written_samples)
    system = evaluate_system(
        generator,
        read_prompts(prompts, field),
        Sampling(**sampling),
        Guidance(**guidance),
        _kept["metrics"],
        seeds=seeds,
        batch_size=batch_size,
        name=name,
        kind=kind,
        progress=lambda done, total: report(done / total),
        listen=writer,
    )
    writer.finish()
    system.save(Path(file))


def front(
    report: Report,
    systems: Sequence[str],
    headline: Mapping[str, Any],
    claims: Mapping[str, Any] | None,
    knobs: Sequence[float | None],
    out: str,
) -> None:
    """front.json, front.png and table.txt from the values of all systems."""
    found = [System.read(Path(file)) for file in systems]
    for system, knob in zip(found, knobs, strict=True):
        system.knob = knob
    shown = Headline(**headline)
    by_name = {system.name: system for system in found}
    judged = judge(by_name, Claims(**claims), shown) if claims else []
    title = finding(by_name, Claims(**claims), shown) if claims else ""
    write_front(Path(out), found, shown, judged, title)
