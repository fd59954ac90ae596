"""Quality and diversity along the fits of recipes/neighbours.yaml that begin from the base, for docs/neighbours.md.

    python tests/neighbour_paths.py runs/neighbours

Prints quality and diversity at some steps, and the diversity where a fit first reaches the quality that the divergence alone
ends with. Writes every validation into docs/evidence/neighbours_paths.json: 12 prompts with 8 samples each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cfg_distill.files.logs import scalars_of

FILE = Path(__file__).parents[1] / "docs/evidence/neighbours_paths.json"
FROM_BASE = ("kl from base", "diversity from base", "few-shot from base")
"""The first is the control."""
SHOWN = (15, 45, 75, 105, 150)
"""Steps."""
Paths = dict[str, dict[str, list[list[float]]]]
"""Name of the fit -> training seed -> rows of step, quality and diversity."""


def paths(out: Path) -> Paths:
    """The validations of a study's fits."""
    found: Paths = {}
    for name in FROM_BASE:
        for folder in sorted((out / "fits" / name).glob("seed *")):
            (run,) = folder.glob("version_*")
            values = {(tag, step): round(value, 4) for tag, step, value in scalars_of(run)}
            steps = sorted(step for tag, step in values if tag == "val/quality")
            rows = [[step + 1.0, values["val/quality", step], values["val/diversity", step]] for step in steps]
            found.setdefault(name, {})[folder.name.removeprefix("seed ")] = rows
    return found


def reached(path: Sequence[Sequence[float]], quality: float) -> float | None:
    """The diversity where a path first has a quality, on the line between two validations; None where it never has.

    Example:
        >>> reached([[15, 0.4, 0.8], [30, 0.6, 0.7]], 0.5)
        0.75
    """
    if path[0][1] >= quality:
        return path[0][2]
    for (_, before, varied), (_, after, less) in pairwise(path):
        if before < quality <= after:
            return varied + (less - varied) * (quality - before) / (after - before)
    return None


def table_of_paths(found: Paths) -> str:
    """Quality and diversity along the way, mean over training seeds; and the diversity at the quality the control ends with."""
    control = found[FROM_BASE[0]]
    quality = sum(path[-1][1] for path in control.values()) / len(control)
    heads = ["fit", *(f"step {step}" for step in SHOWN), f"diversity at quality {quality:.3f}"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, runs in found.items():
        at = {step: [row[1:] for path in runs.values() for row in path if row[0] == step] for step in SHOWN}
        cells = [
            ", ".join(f"{sum(column) / len(column):.3f}" for column in zip(*rows, strict=True)) for rows in at.values()
        ]
        values = [reached(path, quality) for path in runs.values()]
        cells.append("; ".join("not reached" if value is None else f"{value:.3f}" for value in values))
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
