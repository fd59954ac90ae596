"""``cfg-distill compare``: two studies on the same prompts, system by system, paired by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.compare import between, resampler
from cfg_distill.evaluation.front import ROWS, Interval
from cfg_distill.evaluation.intervals import LEAST_PROMPTS, Resampler, shortage, signed
from cfg_distill.evaluation.system import System
from cfg_distill.files.columns import aligned
from cfg_distill.report.results import Results, problems_of_prompts, read_results


def compare_studies(first: str | Path, second: str | Path) -> str:
    """The second study minus the first: every system that both have, every headline metric.

    Args:
        first: the folder of the results, or the study file.
        second: the same of the other study.

    Returns:
        The differences as text.

    Raises:
        ConfigError: a study cannot be read; they have other prompts, no system or no metric in common.
    """
    one, other = read_results(first), read_results(second)
    if problems := problems_of_prompts(one, other):
        raise ConfigError(problems)
    names = [name for name, each in one.systems.items() if name in other.systems and each.kind not in ROWS]
    metrics = [metric for metric in headline_metrics(one) if metric in headline_metrics(other)]
    if not names or not metrics:
        what = "system of the same name" if not names else "headline metric"
        raise ConfigError(
            f"Expected a {what} in both studies, but `{one.folder}` and `{other.folder}` have none in common."
        )
    rows = [["system", *metrics]]
    few = []
    for name in names:
        found = {metric: paired(one.systems[name], other.systems[name], metric) for metric in metrics}
        rows.append([name, *map(_cell, found.values())])
        few += [f"{metric} of {name}" for metric, means in found.items() if means is None or shortage(means.prompts)]
    prompts = len(one.systems[names[0]].prompts)
    about = f"{other.folder} minus {one.folder}: paired by prompt on {prompts} prompts, with 95 % bootstrap intervals."
    notes = (
        [f"Undecided, since fewer than {LEAST_PROMPTS} prompts have a value in both: {', '.join(few)}."] if few else []
    )
    return "\n".join([about, "", *aligned(rows), "", *notes, *_notes(one, other)])


def headline_metrics(results: Results) -> list[str]:
    """The headline metrics; where nobody named some, all of quality and diversity."""
    headline = results.headline
    if headline is None:
        return results.on("quality") + results.on("diversity")
    return list(filter(None, (headline.quality, headline.diversity, headline.independent)))


def paired(one: System, other: System, metric: str) -> Resampler | None:
    """The means of the other system and of the one, prompt by prompt; None where no prompt has a value in both.

    Where the studies have other sampling seeds, the mean over seeds stands for a prompt. Training runs of two studies share
    no seed, whatever their names.
    """
    pair = [_of_study(system, side) for side, system in (("first", one), ("second", other))]
    if any(metric not in each.values for each in pair):
        return None
    if one.seeds != other.seeds:
        pair = [_averaged(system, metric) for system in pair]
    try:
        return resampler(pair[::-1], [metric])
    except ValueError:
        return None


def verdict(interval: Interval) -> str:
    """Which study is higher, where the interval decides.

    Example:
        >>> [verdict(Interval(mean, mean - 1, mean + 1)) for mean in (-2.0, 0.5, 2.0)]
        ['lower', 'undecided', 'higher']
    """
    if interval.low == interval.high == 0:
        return "equal"
    return "higher" if interval.low > 0 else "lower" if interval.high < 0 else "undecided"


def _of_study(system: System, study: str) -> System:
    """The system as one of its study alone: systems of one chain of training are paired by training seed."""
    chain = vars(system).get("chain")
    return System(**(vars(system) | {"chain": f"{study}: {chain}"})) if chain else system


def _averaged(system: System, metric: str) -> System:
    """The system with one sampling seed: the mean over all, NaN on a prompt without a value."""
    values_SP = np.array(system.values[metric], dtype=float)
    counts_P = np.isfinite(values_SP).sum(-2, keepdims=True)
    means_P = np.where(counts_P > 0, np.nansum(values_SP, -2, keepdims=True) / np.maximum(counts_P, 1), np.nan)
    return replace(system, seeds=[0], values={metric: means_P.tolist()})


def _cell(means: Resampler | None) -> str:
    if means is None:
        return "-"
    interval = between(means)
    return f"{signed(interval)} {'undecided' if shortage(means.prompts) else verdict(interval)}"


def _notes(one: Results, other: Results) -> Sequence[str]:
    """What a reader of the differences must know: systems on one side only, and other settings."""
    notes = []
    for mine, its in ((one, other), (other, one)):
        alone = [name for name in mine.systems if name not in its.systems]
        if alone:
            notes.append(f"Only in {mine.folder}: {', '.join(alone)}.")
    settings = [each.study.get("evaluation", {}) for each in (one, other)]
    if all(settings):
        keys = ("metrics", "samples", "seeds", "max_new_tokens", "temperature", "top_k", "top_p", "dtype")
        different = [key for key in keys if settings[0].get(key) != settings[1].get(key)]
        if different:
            notes.append(
                f"The studies differ in evaluation.{', evaluation.'.join(different)}: a difference may come from that."
            )
    return notes
