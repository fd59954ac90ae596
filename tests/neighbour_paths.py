"""Quality and diversity along the fits of recipes/neighbours.yaml that begin from the base, for docs/neighbours.md.

    python tests/neighbour_paths.py runs/neighbours

Prints the diversity of each fit where it first reaches the quality that the divergence alone ends with, and writes every
validation into docs/evidence/neighbours_paths.json. A validation has 12 prompts with 8 samples each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FILE = Path(__file__).parents[1] / "docs/evidence/neighbours_paths.json"
FROM_BASE = ("kl from base", "diversity from base", "few-shot from base")
"""The first is the control."""
Paths = dict[str, dict[str, list[list[float]]]]
"""Name of the fit -> training seed -> rows of step, quality and diversity."""


def paths(out: Path) -> Paths:
    """The validations of a study's fits."""
    found: Paths = {}
    for name in FROM_BASE:
        for folder in sorted((out / "fits" / name).glob("seed *")):
            (events,) = folder.glob("version_*/events.*")
            read = EventAccumulator(str(events)).Reload()
            columns = [
                [round(each.value, 4) for each in read.Scalars(f"val/{key}")] for key in ("quality", "diversity")
            ]
            steps = [each.step + 1 for each in read.Scalars("val/quality")]
            rows = [list(row) for row in zip(steps, *columns, strict=True)]
            found.setdefault(name, {})[folder.name.removeprefix("seed ")] = rows
    return found


def reached(path: Sequence[Sequence[float]], quality: float) -> float | None:
    """The diversity where a path first reaches a quality, on the line between two validations; None where it never does.

    Example:
        >>> reached([[15, 0.4, 0.8], [30, 0.6, 0.7]], 0.5)
        0.75
    """
    for (_, before, varied), (_, after, less) in pairwise(path):
        if before < quality <= after:
            return varied + (less - varied) * (quality - before) / (after - before)
    return None


def table_of_paths(found: Paths) -> str:
    """Diversity at the quality with which the control ends, mean over training seeds, and the end of each path."""
    control = found[FROM_BASE[0]]
    quality = sum(path[-1][1] for path in control.values()) / len(control)
    seeds = [f"seed {seed}" for seed in control]
    lines = [
        f"Diversity where quality first reaches {quality:.3f}, the mean of the control's ends; then quality and diversity"
        " at the end.",
        "",
        f"| fit | {' | '.join(seeds)} | {' | '.join(f'end, {seed}' for seed in seeds)} |",
        "|---" * (1 + 2 * len(seeds)) + "|",
    ]
    for name, runs in found.items():
        at = [reached(path, quality) for path in runs.values()]
        cells = ["not reached" if value is None else f"{value:.3f}" for value in at]
        cells += [f"{path[-1][1]:.3f}, {path[-1][2]:.3f}" for path in runs.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path)
    found = paths(parser.parse_args().study)
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(table_of_paths(found))


if __name__ == "__main__":
    main()
