"""Paired differences of two systems of finished studies or evaluations, in every metric that both have.

    python docs/differences.py runs/soups soup_quality runs/tunes/guidance_2 quality

It prints the first minus the second, with 95 % bootstrap intervals over prompts, samples and training seeds.
"""

from __future__ import annotations

import sys

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.evaluation.compare import between, resampler
from cfg_distill.evaluation.intervals import shortage, signed
from cfg_distill.report.comparing import paired
from cfg_distill.report.results import problems_of_prompts, read_results


def main(folder: str, name: str, other_folder: str, other_name: str) -> None:
    left, right = read_results(folder), read_results(other_folder)
    found = list(problems_of_prompts(left, right))
    for results, each in ((left, name), (right, other_name)):
        if each not in results.systems:
            found.append(Problem("", f"`{results.folder}` has no `{each}`, but {', '.join(results.systems)}."))
    if found:
        raise ConfigError(found)
    one, other = left.systems[name], right.systems[other_name]
    for metric in one.values:
        if metric not in other.values:
            continue
        # Systems of one study share their training seeds; those of two do not, whatever their names.
        means = resampler([one, other], [metric]) if folder == other_folder else paired(other, one, metric)
        print(f"{metric:20} {'no prompt in common' if means is None else signed(between(means))}", end="")
        print(f"  ({few})" if means is not None and (few := shortage(means.prompts)) else "")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"error: expected four arguments.\n\n{__doc__}")
    try:
        main(*sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
