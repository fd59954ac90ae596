"""Paired differences of two systems of finished studies or evaluations, in every metric that both have.

    python docs/differences.py runs/soups soup_quality runs/tunes/guidance_2 quality

It prints the first minus the second, with 95 % bootstrap intervals over prompts, samples and training seeds.
"""

from __future__ import annotations

import sys

from cfg_distill.evaluation.compare import difference
from cfg_distill.report.results import read_results


def main(folder: str, name: str, other_folder: str, other_name: str) -> None:
    left, right = read_results(folder).systems[name], read_results(other_folder).systems[other_name]
    for metric in left.values:
        if metric in right.values:
            found = difference(left, right, metric)
            print(f"{metric:20} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
