"""Soups of a study's students beside its systems: the tables of docs/smollm2.md, and docs/evidence/soup.json.

    cfg-distill merge --method soup --out runs/soup --models "runs/smollm2_full/students/diversity/seed 0" ... (seeds 1 and 2)
    cfg-distill evaluate --model runs/soup --prompts recipes/smollm2/prompts/report_64.txt --samples 4 --max-new-tokens 48
        --batch-size 32 --metrics recipes/smollm2/metrics.yaml --out runs/soup_diversity
    (the same of the quality students, into runs/soup_quality)
    python tests/soup_study.py runs/smollm2_full diversity=runs/soup_diversity quality=runs/soup_quality

Differences are paired over prompts, with 95 % bootstrap intervals. A height is what a soup has more than the best mixture of
baselines: in diversity, at no less substance, and in substance, at no less diversity. "Likely" are the baselines that keep the
study's guard of log-probability. A soup is one system: its intervals leave out what another training would change.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfg_distill.evaluation.compare import difference, height_above
from cfg_distill.evaluation.intervals import Interval
from cfg_distill.evaluation.system import System
from cfg_distill.report.results import read_results

METRICS = ("substance", "diversity", "word_diversity", "log_probability", "degeneration")
AGAINST = {
    "base": "the base",
    "guidance 1.5": "guidance 1.5",
    "guidance 2": "guidance 2",
    "quality": "the quality students",
    "diversity": "the diversity students",
}
OUT = Path(__file__).parents[1] / "docs" / "evidence" / "soup.json"


def numbers(interval: Interval | Any) -> list[float]:
    """Mean, lower and upper end."""
    return [round(float(each), 4) for each in (interval.mean, interval.low, interval.high)]


def measured(soup: System, systems: Mapping[str, System]) -> dict[str, Any]:
    """Means of a soup, its differences from systems of a study, and its heights above their fronts."""
    baselines = [each for each in systems.values() if each.kind in ("base", "guidance")]
    least = systems["base"].interval("log_probability").mean - 0.5
    fronts = {
        "of one pass": [each for each in baselines if each.relative_cost == 1],
        "of any cost": baselines,
        "of any cost, likely": [each for each in baselines if each.interval("log_probability").mean >= least],
    }
    heights = []
    for name, front in fronts.items():
        for metric in ("diversity", "word_diversity"):
            for of, at_least in ((metric, "substance"), ("substance", metric)):
                found = height_above(soup, front, at_least, of)
                about = {"front": f"{len(front)} baselines {name}", "of": of, "at_least": at_least}
                heights.append(about | {"height": numbers(found), "beyond": found.beyond})
    return {
        "means": {metric: numbers(soup.interval(metric)) for metric in METRICS},
        "differences": {
            name: {metric: numbers(difference(soup, systems[name], metric)) for metric in METRICS} for name in AGAINST
        },
        "heights": heights,
    }


def signed(interval: list[float]) -> str:
    """A difference, as the page has it."""
    return f"{interval[0]:+.3f} [{interval[1]:+.3f}, {interval[2]:+.3f}]"


def rows(name: str, found: Mapping[str, Any]) -> list[str]:
    """The lines of the page about one soup."""
    means = [f"{mean:.3f} ±{(high - low) / 2:.3f}" for mean, low, high in found["means"].values()]
    lines = [f"| soup of {name} students | {' | '.join(means)} |"]
    for other, differences in found["differences"].items():
        lines.append(f"| minus {AGAINST[other]} | {' | '.join(map(signed, differences.values()))} |")
    return lines


def main(study: Path, folders: Mapping[str, Path]) -> None:
    """Print the tables, and write the numbers."""
    systems, found = read_results(study).systems, {}
    for name, folder in folders.items():
        (soup,) = read_results(folder).systems.values()
        found[name] = measured(soup, systems)
        print(*rows(name, found[name]), sep="\n")
        for each in found[name]["heights"]:
            note = f", none has its {each['at_least']}" if each["beyond"] else ""
            print(f"{each['of']} above {each['front']}, at its {each['at_least']}: {signed(each['height'])}{note}")
    OUT.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), {name: Path(folder) for name, _, folder in (each.partition("=") for each in sys.argv[2:])})
