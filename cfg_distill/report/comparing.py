"""``cfg-distill compare``: two studies on the same prompts, system by system, paired by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.front import Interval, bootstrap_interval
from cfg_distill.evaluation.system import System
from cfg_distill.report.choosing import shown
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
    names = [name for name in one.systems if name in other.systems]
    metrics = [metric for metric in headline_metrics(one) if metric in headline_metrics(other)]
    if not names or not metrics:
        what = "system of the same name" if not names else "headline metric"
        raise ConfigError(f"Expected a {what} in both studies, but `{one.folder}` and `{other.folder}` have none in common.")
    rows = [["system", *metrics]]
    for name in names:
        pair = one.systems[name], other.systems[name]
        shared = [metric if all(metric in each.values for each in pair) else None for metric in metrics]
        rows.append([name, *(_cell(paired_difference(*pair, metric)) if metric else "-" for metric in shared)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    prompts = len(one.systems[names[0]].prompts)
    about = f"{other.folder} minus {one.folder}: paired by prompt on {prompts} prompts, with 95 % bootstrap intervals."
    return "\n".join([about, "", *lines, "", *_notes(one, other)])


def headline_metrics(results: Results) -> list[str]:
    """The headline metrics; where nobody named some, all of quality and diversity."""
    headline = results.headline
    if headline is None:
        return results.on("quality") + results.on("diversity")
    return list(filter(None, (headline.quality, headline.diversity, headline.independent)))


def paired_difference(one: System, other: System, metric: str) -> Interval:
    """The other system minus the one: the mean difference by prompt, and its 95 % interval.

    Sampling seeds of two studies are different random numbers. So each study's mean over seeds stands for a prompt, and
    prompts are redrawn. A prompt on which either has no value is left out.
    """
    means_P = [_means(system.cells(metric)) for system in (one, other)]
    return bootstrap_interval(means_P[1] - means_P[0])


def verdict(interval: Interval) -> str:
    """Which study is higher, where the interval decides.

    Example:
        >>> [verdict(Interval(mean, mean - 1, mean + 1)) for mean in (-2.0, 0.5, 2.0)]
        ['lower', 'undecided', 'higher']
    """
    return "higher" if interval.low > 0 else "lower" if interval.high < 0 else "undecided"


def _means(cells_PS: np.ndarray) -> np.ndarray:
    """The mean over seeds; NaN for a prompt without a value."""
    counts_P = np.isfinite(cells_PS).sum(1)
    return np.where(counts_P > 0, np.nansum(cells_PS, 1) / np.maximum(counts_P, 1), np.nan)


def _cell(interval: Interval) -> str:
    return f"{shown(interval)} {verdict(interval)}"


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
            notes.append(f"The studies differ in evaluation.{', evaluation.'.join(different)}: a difference may come from that.")
    return notes
