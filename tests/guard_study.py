"""The guard of degeneration of a study of soups, with evaluations of further sampling seeds added: the line of docs/text.md.

    python tests/guard_study.py runs/smollm2_soup runs/guard

The second folder has one evaluation per system and training seed, `base`, `quality 0` to `beyond 2` (docs/text.md has the
command). It prints each system's share of degenerate texts with the 95 % interval over training seeds, prompts and samples,
and the guard's bound; and writes docs/evidence/guard.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from cfg_distill.evaluation import System
from cfg_distill.evaluation.guards import guards_of
from cfg_distill.report.results import read_results

OUT = Path(__file__).parents[1] / "docs" / "evidence" / "guard.json"
METRIC = "degeneration"


def longer(system: System, further: list[System]) -> System:
    """A system with the values of further sampling seeds, per training seed, behind its own."""
    assert all(more.prompts == system.prompts for more in further)
    own = system.values[METRIC] if system.training_seeds else [system.values[METRIC]]
    values = [[*run, *more.values[METRIC]] for run, more in zip(own, further, strict=True)]
    seeds = [*system.seeds, *further[0].seeds]
    return replace(system, values={METRIC: values if system.training_seeds else values[0]}, seeds=seeds)


def main(study: Path, folder: Path) -> None:
    results, found = read_results(study), {}
    systems = results.systems
    for name in ("base", "quality", "beyond"):
        runs = [name] if name == "base" else [f"{name} {seed}" for seed in systems[name].training_seeds]
        further = [next(iter(read_results(folder / run).systems.values())) for run in runs]
        found[name] = longer(systems[name], further)
    (guard,) = guards_of({METRIC: results.claims["guards"][METRIC]})
    told = {}
    for name, system in found.items():
        value, excess = system.interval(METRIC), guard.excess(system, found["base"])
        told[name] = {"value": value._asdict(), "excess": excess._asdict(), "verdict": guard.verdict(excess)}
        print(f"{name:8} {value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]  {guard}: {guard.verdict(excess)}")
    OUT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
