"""One study from parts that trained its seeds apart: on several machines, or on several days.

    python docs/pool.py docs/evidence/smollm2_knob.yaml runs/smollm2_knob runs/first runs/second

The first argument is the study file of all training seeds, the second the folder to write, the rest are folders of studies
with some of its training seeds and systems. It takes the values that the parts measured (``systems/``, not the models),
and writes front.json with claims and verdicts, front.png and table.txt. A system that two parts measured is taken from
the first. It refuses parts that were begun with other settings, and says which values are missing.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from cfg_distill.study.config import Study, load_study
from cfg_distill.study.jobs import DrawFront
from cfg_distill.study.record import begun_with, changes, record_of
from cfg_distill.study.steps import plan


def differences(part: Path, whole: dict[str, Any]) -> list[str]:
    """What a part was begun with that the whole study has otherwise; fewer training seeds and systems are no difference."""
    begun = begun_with(part)
    if begun is None:
        return ["no study: there is no study.json"]
    seeds = whole["study"]["training_seeds"]
    strange = [seed for seed in begun["study"]["training_seeds"] if seed not in seeds]
    begun["study"]["training_seeds"] = seeds
    return changes(begun, whole) + [f"training_seeds: {seed} is not among {seeds}" for seed in strange]


def of_one_seed(part: Path, name: Path) -> Path:
    """Where a part with a single training seed has ``systems/NAME/seed 3.json``: in ``systems/NAME.json``."""
    begun = begun_with(part)
    seeds = begun["study"]["training_seeds"] if begun else []
    return part / f"{name.parent}.json" if [f"seed {seed}" for seed in seeds] == [name.stem] else part / name


def gather(job: DrawFront, out: Path, parts: list[Path]) -> list[str]:
    """Copy the values of all systems from the parts; returns the names of what no part has."""
    wanted = [Path(file) for files in job.systems.values() for file in files]
    wanted += [Path(file) for file in (job.timing, job.ladder) if file]
    missing = []
    for file in wanted:
        name = file.relative_to(out)
        found = next(
            (place for part in parts for place in (part / name, of_one_seed(part, name)) if place.is_file()), None
        )
        if found is None:
            missing.append(str(name))
        elif found != file:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, file)
    return missing


def pool(study: Study, out: Path, parts: list[Path]) -> list[str]:
    """Pool the parts of a study; returns the reasons why it cannot be done, none when it was.

    Args:
        study: of all training seeds.
        out: the folder to write.
        parts: the folders of the studies that ran apart.
    """
    whole = record_of(study)
    reasons = [f"{part}: {line}" for part in parts for line in differences(part, whole)]
    if reasons:
        return reasons
    job = plan(study, out)[-1].work
    assert isinstance(job, DrawFront)
    if missing := gather(job, out, parts):
        return [f"no part has {name}" for name in missing]
    job.run(lambda done, total: None)
    return []


def main(file: str, out: str, *parts: str) -> int:
    study, problems = load_study(file)
    reasons = [str(problem) for problem in problems] or pool(study, Path(out), [Path(part) for part in parts])
    for reason in reasons:
        print(f"error: {reason}", file=sys.stderr)
    if reasons:
        return 2
    print((Path(out) / "table.txt").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
