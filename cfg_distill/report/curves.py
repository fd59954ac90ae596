"""Training curves from the logs of fits: TensorBoard's event files, or the CSV file of Lightning's CSVLogger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cfg_distill.files.logs import scalars_of
from cfg_distill.report.drawing import Chart, chart

Series = dict[str, list[tuple[int, float]]]
"""Tag -> (step, value), by rising step."""

MOST_CHARTS, MOST_POINTS = 9, 240
EXPLAINED = {
    "train/kl_per_token": "divergence from the guided base per token, on training prompts",
    "val/kl_per_token": "divergence from the guided base per token, on validation prompts",
    "train/entropy_student": "entropy of the student per token: near 0 it has collapsed",
    "val/entropy_student": "entropy of the student per token, on validation prompts",
    "gradient_ratio/diversity": "gradient norm of the diversity reward over that of the divergence",
    "weight/diversity": "weight of the diversity reward, beta",
    "train/diversity_reward": "mean diversity reward of the training samples",
    "train/length": "mean length of the training samples, in tokens",
    "train/loss": "the loss that is minimised",
}
"""The tags that are worth a look, in their order, and what they are."""
VALIDATION = "val/"


def read_curves(folder: Path) -> Series:
    """The scalars that one fit has logged.

    Args:
        folder: of the fit; its runs are in ``version_0``, ``version_1`` and so on. A later run wins at equal steps.
    """
    values: dict[str, dict[int, float]] = {}
    for run in sorted(folder.glob("version_*"), key=lambda path: (len(path.name), path.name)):
        for tag, step, value in scalars_of(run):
            if math.isfinite(value):
                values.setdefault(tag, {})[step] = value
    return {tag: sorted(points.items()) for tag, points in values.items()}


def charts_of(fits: Mapping[str, Series]) -> list[Chart]:
    """The charts of the page: the explained tags, then those of validation.

    Args:
        fits: name of the fit -> its scalars.
    """
    tags = list(dict.fromkeys(tag for series in fits.values() for tag in series))
    validated = [tag for tag in tags if tag.startswith(VALIDATION) and not tag.endswith("identical_groups")]
    wanted = [tag for tag in dict.fromkeys([*list(EXPLAINED)[:2], *validated, *EXPLAINED]) if tag in tags]
    drawn = []
    for tag in wanted:
        series = {fit: _thinned(curves[tag]) for fit, curves in fits.items() if len(curves.get(tag, [])) > 1}
        if series:
            drawn.append(chart(tag, series))
    return drawn[:MOST_CHARTS]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many points as can be seen, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
