"""The metrics of an evaluation: from a file, from the models' own folders, or by the kind of their samples."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfg_distill.errors import ConfigError, Context, PartError, Problem, problems_of
from cfg_distill.evaluation.renderers import metrics_of_profiles
from cfg_distill.recipe.files import read_metric_specs

if TYPE_CHECKING:
    from cfg_distill.generators import Generator
    from cfg_distill.metrics.base import SampleMetric
    from cfg_distill.sampling import Conditioner

TEXT_METRICS: dict[str, Any] = {
    "self_bleu_diversity": {"class_path": "cfg_distill.metrics.SelfBLEUDiversity"},
    "distinct_2": {"class_path": "cfg_distill.metrics.DistinctN"},
    "repetition": {"class_path": "cfg_distill.metrics.Repetition"},
    "empty_share": {"class_path": "cfg_distill.metrics.EmptyShare"},
    "length": {"class_path": "cfg_distill.metrics.Length"},
}
"""For any text. A metric of quality needs an embedder or a judge, which only the user can name."""

SOUND_METRICS: dict[str, Any] = {
    "silence": {"class_path": "cfg_distill.metrics.SilenceRate"},
    "clipping": {"class_path": "cfg_distill.metrics.ClippingRate"},
    "repetition": {"class_path": "cfg_distill.metrics.AudioRepetition"},
    "empty_share": {"class_path": "cfg_distill.metrics.EmptyShare"},
    "length": {"class_path": "cfg_distill.metrics.Length"},
}
"""For any sound. Adherence and diversity need an encoder; recipes/musicgen/metrics.yaml names some."""


def default_metrics(
    generators: Sequence[Generator], trust: Sequence[str] = ()
) -> tuple[Mapping[str, Any], list[Problem]]:
    """The metrics that the models' folders agree on; else the metrics of any text, or of any sound.

    Args:
        generators: the models, not loaded.
        trust: modules, beside this package, that their folders may name.

    Returns:
        The metrics, name -> class_path and init_args; and a remark where a folder names a class that is not trusted.
    """
    named, remarks = metrics_of_profiles([generator.path for generator in generators], trust)
    is_sound = any(generator.sample_rate is not None for generator in generators)
    return named or (SOUND_METRICS if is_sound else TEXT_METRICS), remarks


def read_metrics(path: str | Path, context: Context = Context()) -> dict[str, SampleMetric]:
    """The metrics of a YAML file.

    Args:
        path: the file.
        context: what the metrics may need to know.

    Raises:
        ConfigError: it cannot be read or names no metric; everything that is wrong with its metrics.
    """
    specs = read_metric_specs(path)
    try:
        return metrics_of(specs, context)
    except ConfigError as error:
        raise ConfigError([f"File `{path}`: {problem}" for problem in error.problems]) from error


def metrics_of(specs: Mapping[str, Any], context: Context = Context()) -> dict[str, SampleMetric]:
    """Metrics from name -> class_path and init_args. Arguments and errors: see :func:`parts_of`."""
    from cfg_distill.metrics.base import SampleMetric

    return parts_of(SampleMetric, specs, context)


def problems_of_metrics_on(metrics: Mapping[str, SampleMetric], prompts: Sequence[str]) -> list[Problem]:
    """Why metrics have no values for some prompts, each problem once.

    Returns:
        Problems of the prompts themselves, without a key; and of settings, by the keys ``NAME.init_args...``.
    """
    found = [
        problem.under(f"{name}.init_args") if problem.path else problem
        for name, metric in metrics.items()
        for problem in metric.problems_of_prompts(prompts)
    ]
    return list(dict.fromkeys(found))


def conditioner_of(spec: dict[str, Any] | None, samples: int) -> Conditioner | None:
    """The conditioner of a system, from class_path and init_args; None for none. Errors: see :func:`parts_of`.

    Args:
        spec: the mapping.
        samples: per prompt.
    """
    from cfg_distill.sampling import Conditioner

    return None if spec is None else parts_of(Conditioner, {"conditioner": spec}, Context(samples))["conditioner"]


def parts_of(kind: type[Any], specs: Mapping[str, Any], context: Context = Context()) -> dict[str, Any]:
    """Parts of a kind from name -> class_path and init_args.

    Args:
        kind: their base class.
        specs: the mapping.
        context: what the parts may need to know.

    Raises:
        ConfigError: no such class, or arguments that it does not take. All problems at once, under the parts' names.
        PartError: the ``__init__`` of a class outside this package raised an exception, which is the cause.
    """
    from jsonargparse import ArgumentParser

    from cfg_distill.recipe.checks import Walk

    parts: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, spec in specs.items():
        walk = Walk()
        walk.value(kind, spec, name, list(specs))
        if walk.problems:
            problems += walk.problems
            continue
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(kind, "part", required=True)
        try:
            part = parser.instantiate_classes(parser.parse_object({"part": spec})).part
        except Exception as error:  # whatever jsonargparse raises; its text names the key
            raised, kind_name = _raised_within(error)
            if isinstance(raised, ConfigError):
                problems += raised.under(name)
            elif raised is not None:
                raise PartError(kind_name, name) from raised
            else:
                problems.append(Problem(name, " ".join(str(error).split())))
        else:
            problems += problems_of(part, context, f"{name}.init_args")
            parts[name] = part
    if problems:
        raise ConfigError(problems)
    return parts


def _raised_within(error: BaseException | None) -> tuple[BaseException | None, str]:
    """What a part itself raised, behind the error that jsonargparse puts in its place, whose text hides where that was.

    Returns:
        A ConfigError; or any exception of the ``__init__`` of a class outside this package, with the name of the class. None
        where the error is about what was given.
    """
    while error is not None:
        if isinstance(error, ConfigError):
            return error, ""
        caller = ""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            module, code = str(frame.f_globals.get("__name__", "")), frame.f_code
            room = module.partition(".")[0]
            if caller == "jsonargparse" and room not in (caller, "cfg_distill") and code.co_name == "__init__":
                return error, type(frame.f_locals[code.co_varnames[0]]).__name__
            caller = room
        error = error.__cause__ or error.__context__
    return None, ""


def problems_of_group(metrics: Mapping[str, SampleMetric], context: Context) -> list[Problem]:
    """Why metrics cannot compare the samples of a prompt: a group of one has no diversity."""
    comparing = [name for name, metric in metrics.items() if metric.axis == "diversity"]
    if context.samples != 1 or not comparing:
        return []
    return [
        Problem(
            "samples", f"expected at least 2, since `{comparing[0]}` compares the samples of one prompt, but got 1."
        )
    ]
