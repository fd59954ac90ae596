"""Points of a front for finished models: what ``cfg-distill evaluate`` runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.headline import Headline
from cfg_distill.files import write_text
from cfg_distill.folders import find_file, problems_of_folder

if TYPE_CHECKING:
    from cfg_distill.evaluation import System
    from cfg_distill.generators import Generator
    from cfg_distill.metrics.base import SampleMetric

_TOKENS = 128
"""The longest sample of text, where nobody says another length."""

TEXT_METRICS: dict[str, Any] = {
    "self_bleu_diversity": {"class_path": "cfg_distill.metrics.SelfBLEUDiversity"},
    "distinct_2": {"class_path": "cfg_distill.metrics.DistinctN"},
    "repetition": {"class_path": "cfg_distill.metrics.Repetition"},
    "length": {"class_path": "cfg_distill.metrics.Length"},
}
"""For any text: quality takes an embedder or a judge, which only the user can name."""

SOUND_METRICS: dict[str, Any] = {
    "silence": {"class_path": "cfg_distill.metrics.SilenceRate"},
    "clipping": {"class_path": "cfg_distill.metrics.ClippingRate"},
    "repetition": {"class_path": "cfg_distill.metrics.AudioRepetition"},
    "length": {"class_path": "cfg_distill.metrics.Length"},
}
"""For any sound: adherence and diversity take an encoder; recipes/musicgen/metrics.yaml names some."""


def evaluate_models(
    models: Sequence[str],
    prompts: str | Path,
    out: str | Path | None = None,
    samples: int = 8,
    seeds: Sequence[int] = (0,),
    max_new_tokens: int | None = None,
    temperature: Sequence[float] = (1.0,),
    guidance: Sequence[float] = (1.0,),
    metrics: str | Path | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    seconds: float | None = None,
    written: int = 4,
    written_samples: int = 2,
    dtype: str = "float32",
) -> None:
    """Evaluate each model at each temperature and guidance scale; prints the table.

    Args:
        models: model folders, adapter folders, hub names or ``tunes:base``.
        prompts: a file of prompts: text (a prompt a line), JSON lines or CSV.
        out: a folder for front.json, front.png, table.txt, the per-prompt values and some samples; None only prints.
        samples: samples a prompt and seed.
        seeds: of sampling; each draws its own groups.
        max_new_tokens: the longest sample; None for 128 tokens of text, or ``seconds`` of sound.
        temperature: sampling temperatures.
        guidance: scales of guidance; 1 is none.
        metrics: a YAML file, name -> class_path and init_args; None chooses by the kind of model.
        batch_size: prompts at once.
        overwrite: write into an ``out`` that holds results.
        seconds: of sound; None for 10. Models of other frame rates get as many seconds.
        written: prompts of which samples are written, to be read and heard.
        written_samples: samples of each that are written.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``. One model is in memory at a time.

    Raises:
        ConfigError: all problems of the arguments at once.
    """
    problems = [problem for model in models for problem in problems_of_folder("model", model)]
    folder = Path(out) if out is not None else None
    if folder is not None and (folder / "front.json").exists() and not overwrite:
        problems.append(f"Option `--out`: `{folder}` holds results. Name another folder, or pass --overwrite.")
    if not seeds or len(set(seeds)) < len(seeds):
        problems.append(f"Option `--seeds`: expected one or more different numbers, but got {list(seeds)}.")
    if batch_size < 1:
        problems.append(f"Option `--batch-size`: expected at least 1, but got {batch_size}.")

    from rich.console import Console
    from rich.progress import track

    from cfg_distill.data import read_prompts
    from cfg_distill.evaluation import evaluate
    from cfg_distill.evaluation.written import Writer
    from cfg_distill.generators import device, open_generator
    from cfg_distill.guidance import Guidance
    from cfg_distill.sampling import Sampling, problems_of_lengths

    asked: list[str] = []
    try:
        asked = read_prompts(prompts)
    except ConfigError as error:
        problems += [f"Option `--prompts`: {problem}" for problem in error.problems]
    generators = {} if problems else {model: open_generator(model, dtype=dtype) for model in models}
    for model, generator in generators.items():
        problems += [f"Model `{model}`: {problem}" for problem in generator.problems()]
    if not problems and len({generator.sample_rate is None for generator in generators.values()}) > 1:
        problems.append(
            "Option `--model`: expected models of text, or models of sound, but got both. Evaluate them apart."
        )
    lengths: dict[str, int] = {}
    for model, generator in {} if problems else generators.items():
        lengths[model], found = _length(generator, max_new_tokens, seconds)
        problems += found
    for each in temperature:
        for model, length in lengths.items() or [("", max_new_tokens or 1)]:
            settings = Sampling(samples=samples, max_new_tokens=length, temperature=each)
            problems += settings.problems(generators[model].longest_sample if lengths else None)
    problems += [problem for scale in guidance for problem in Guidance(scale).problems()]
    for (model, length), scale in product(lengths.items(), guidance) if not problems else ():
        settings = Sampling(max_new_tokens=length)
        problems += [
            f"Model `{model}`: {problem.replace('Key `max_new_tokens`', 'Option `--max-new-tokens`')}"
            for problem in problems_of_lengths(generators[model], asked, settings, Guidance(scale))
        ]
    loaded: dict[str, SampleMetric] = {}
    if not problems:
        try:
            loaded = metrics_of(
                _read_metrics(metrics) if metrics is not None else default_metrics(list(generators.values()))
            )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))

    for metric in loaded.values():
        metric.to(device()).load()  # moved first: loading may embed a folder of sound, on the metric's device
    # Folders by their own names, as long as these tell them apart.
    last = {model: Path(model).name if Path(model).is_dir() else model for model in models}
    short = last if len(set(last.values())) == len(last) else {model: model for model in models}
    plan = list(product(models, temperature, guidance))

    def measured(number: int, model: str, t: float, scale: float) -> System:
        generator = generators[model].load().to(device())
        stem = f"{number:02} {Path(model).name}"
        writer = Writer(generator, folder / "samples" / stem, written, written_samples) if folder and written else None
        system = evaluate(
            generator,
            asked,
            Sampling(samples=samples, max_new_tokens=lengths[model], temperature=t),
            Guidance(scale),
            loaded,
            seeds=seeds,
            batch_size=batch_size,
            name=_name(short[model], t if len(temperature) > 1 else None, scale if len(guidance) > 1 else None),
            kind="guidance" if scale != 1 else "model",
            listen=writer,
        )
        if folder is not None:
            system.save(folder / "systems" / f"{stem}.json")
        if writer is not None:
            writer.finish()
        return system

    systems = []
    console = Console(stderr=True)
    for number, (model, t, scale) in enumerate(
        track(plan, "evaluating", console=console, disable=not console.is_terminal), start=1
    ):
        systems.append(measured(number, model, t, scale))
        if model not in (each for each, _, _ in plan[number:]):
            del generators[model]  # its last point: the next model gets its memory
    print(write_front(folder, systems, _headline(loaded)))


def _length(generator: Generator, max_new_tokens: int | None, seconds: float | None) -> tuple[int, list[str]]:
    """The longest sample in tokens or frames, and what is wrong with it."""
    from cfg_distill.audio import problems_of_audio_extra
    from cfg_distill.generators.length import SECONDS, frames, problems_of_seconds

    if seconds is not None and max_new_tokens is not None:
        return 1, ["Options `--seconds` and `--max-new-tokens`: both are the length. Give one of them."]
    if generator.frame_rate is None:
        found = [] if seconds is None else problems_of_seconds(generator, seconds)
        return (_TOKENS if max_new_tokens is None else max_new_tokens), found
    found = problems_of_audio_extra()
    if max_new_tokens is not None:
        return max_new_tokens, found
    asked = SECONDS if seconds is None else seconds
    wrong = problems_of_seconds(generator, asked)
    return (1 if wrong else frames(generator, asked)), found + wrong


def default_metrics(generators: Sequence[Any]) -> dict[str, Any]:
    """Those of tunes when every model speaks tunes; else what can be said of any text, or of any sound."""
    from cfg_distill.evaluation.written import writes_tunes

    if any(generator.sample_rate is not None for generator in generators):
        return SOUND_METRICS
    if all(writes_tunes(generator) for generator in generators):
        return yaml.safe_load(find_file("recipes/tunes/metrics.yaml").read_text(encoding="utf-8"))
    return TEXT_METRICS


def _read_metrics(path: str | Path) -> dict[str, Any]:
    file = find_file(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"Option `--metrics`: expected a YAML file, but `{path}` does not exist.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Option `--metrics`: `{path}` cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"Option `--metrics`: expected name -> class_path and init_args in `{path}`, but got {content!r}."
        )
    return content


def _name(model: str, temperature: float | None, scale: float | None) -> str:
    """What tells a system from the others."""
    parts = [model.rstrip("/")]
    if scale not in (None, 1.0):
        parts.append(f"guidance {scale:g}")
    if temperature is not None:
        parts.append(f"T {temperature:g}")
    return ", ".join(parts)


def _headline(metrics: dict[str, SampleMetric]) -> Headline | None:
    """The first metric of each axis, and the second of diversity; None, and so no picture, when an axis has none."""
    on = {axis: [name for name, metric in metrics.items() if metric.axis == axis] for axis in ("quality", "diversity")}
    if not on["quality"] or not on["diversity"]:
        return None
    return Headline(on["quality"][0], *on["diversity"][:2])


def metrics_of(specs: Mapping[str, Any]) -> dict[str, SampleMetric]:
    """Metrics from name -> class_path and init_args.

    Raises:
        ConfigError: no such class, or arguments that it does not take; all of them at once.
    """
    from jsonargparse import ArgumentParser

    from cfg_distill.metrics.base import SampleMetric

    metrics, problems = {}, []
    for name, spec in specs.items():
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(SampleMetric, "metric", required=True)
        try:
            metric = parser.instantiate_classes(parser.parse_object({"metric": spec})).metric
        except ConfigError as error:
            problems += [f"Key `evaluation.metrics.{name}`: {problem}" for problem in error.problems]
        except Exception as error:  # whatever jsonargparse raises; its text names the key
            problems.append(f"Key `evaluation.metrics.{name}`: {' '.join(str(error).split())}")
        else:
            problems += [f"Key `evaluation.metrics.{name}`: {problem}" for problem in metric.problems()]
            metrics[name] = metric
    if problems:
        raise ConfigError(problems)
    return metrics


def write_front(
    out: Path | None,
    systems: Sequence[System],
    headline: Headline | None,
    claims: Sequence[Mapping[str, str]] = (),
    title: str = "",
) -> str:
    """Write front.json, front.png (given a headline) and table.txt, unless ``out`` is None; return the table."""
    from cfg_distill.evaluation.figure import front_figure
    from cfg_distill.evaluation.front import hypervolumes
    from cfg_distill.evaluation.table import front_table, hypervolume_line

    points = [system.point() for system in systems]
    first = systems[0]
    note = (
        f"{len(first.prompts)} held-out prompts, {first.samples} samples of each, sampling seeds"
        f" {', '.join(map(str, first.seeds))}; bars: 95 % bootstrap intervals over prompts and seeds"
    )
    volumes = hypervolumes(points, headline)
    table = f"{front_table(points)}\n\n{note.replace('bars', '±')}.\n"
    table += "".join(f"{hypervolume_line(volume)}\n" for volume in volumes)
    for claim in claims:
        table += f"\n{claim['verdict'].upper():9}  {claim['claim']}\n           {claim['evidence']}\n"
    if out is None:
        return table
    front = {"systems": points, "claims": list(claims), "hypervolume": volumes}
    write_text(out / "front.json", json.dumps(front, indent=1) + "\n")
    if headline is not None:
        figure = front_figure(points, headline.quality, headline.diversity, headline.independent, title, note)
        staged = out / ".front.png"
        figure.savefig(staged, format="png")
        staged.replace(out / "front.png")
    write_text(out / "table.txt", table)
    return table
