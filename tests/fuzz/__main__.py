"""The command: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz import checkpoints, folders, merges, metrics, prompts, recipes, studies, words
from fuzz.case import Case, complaints
from fuzz.runner import prepare, run, warm
from fuzz.world import World

NUMBERS: dict[Callable[[World, int], list[Case]], int] = {
    words.cases: 340,
    recipes.of_text: 70,
    recipes.of_values: 200,
    studies.cases: 140,
    metrics.cases: 80,
    prompts.cases: 80,
    folders.cases: 120,
    checkpoints.cases: 80,
    merges.cases: 70,
}
SAMPLE_SEED = 1200


def all_cases(world: World) -> list[Case]:
    """Every case, in a fixed order."""
    return [case for make, number in NUMBERS.items() for case in make(world, number)]


def chosen(cases: list[Case], sample: int, only: str) -> list[Case]:
    """The cases that were asked for."""
    area, _, place = only.partition("/")
    found = [case for case in cases if not only or case.area == area]
    if place:
        return [found[int(place)]]
    return random.Random(SAMPLE_SEED).sample(found, min(sample, len(found))) if sample else found


def main() -> int:
    parser = argparse.ArgumentParser("python -m fuzz", description="Broken input, and what must come of it.")
    parser.add_argument("--sample", type=int, default=0, help="number of cases; 0 for all")
    parser.add_argument("--only", default="", help="an area, or one case: prompts/17")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
    parser.add_argument("--keep", type=Path, help="of one case: write its files here, and run nothing")
    parser.add_argument("--json", type=Path, help="a file for the outcome of every case")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        world = World.make(place / "world")
        asked = chosen(all_cases(world), given.sample, given.only)
        if given.keep:
            given.keep.mkdir(parents=True)
            prepare(asked[0], given.keep)
            shutil.copytree(world.folder, given.keep / "world")
            print("cfg-distill", *asked[0].words)
            return 0
        warm()
        return _report(asked, place, given.jobs, given.json)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _report(cases: list[Case], place: Path, jobs: int, file: Path | None) -> int:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    listed, began = [], time.monotonic()

    def one(number: int) -> None:
        case = cases[number]
        got = run(case, place / f"case-{number}")
        wrong = complaints(case, got)
        count = counts[case.area]
        count["cases"] += 1
        count["wrong" if wrong else "refused" if got.code == 2 else "accepted"] += 1
        listed.append({"area": case.area, "name": case.name, "wrong": wrong, "code": got.code, "seconds": round(got.seconds, 2),
                       "err": got.err[-2000:]})  # fmt: skip
        if wrong:
            print(f"{case.area}: {case.name}: {'; '.join(wrong)}", flush=True)
            shown = got.err.strip().splitlines()
            print("    " + "\n    ".join(line[:300] for line in shown[-6:]), flush=True)
        if (place / "PWNED").exists() or list(place.glob("*/PWNED")):
            print(f"{case.area}: {case.name}: CODE RAN", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, range(len(cases))))
    if file is not None:
        file.write_text(json.dumps(listed, indent=1))
    print(f"\n| {'area':15} | cases | refused | accepted | wrong |\n|{'-' * 17}|------:|--------:|---------:|------:|")
    for area, count in [*counts.items(), ("all", _sum(counts))]:
        print(f"| {area:15} | {count['cases']:5} | {count['refused']:7} | {count['accepted']:8} | {count['wrong']:5} |")
    print(f"{time.monotonic() - began:.0f} seconds.")
    return 1 if _sum(counts)["wrong"] else 0


def _sum(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for count in counts.values():
        for key, value in count.items():
            total[key] += value
    return total


if __name__ == "__main__":
    sys.exit(main())
