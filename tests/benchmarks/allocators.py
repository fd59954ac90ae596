"""Seconds and memory of a step under other memory allocators: ours and TRL's, interleaved.

    CFG_DISTILL_BENCH=shared python tests/benchmarks/allocators.py /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4

Each library is loaded by ``LD_PRELOAD`` into a process of its own, which needs 5 to 6 GB; the first row is the system's own.
"""

from __future__ import annotations

import argparse
import os
import statistics
from contextlib import ExitStack
from pathlib import Path

from worker import Worker


def worker_with(library: str, side: str) -> Worker:
    """A side of the benchmark of steps, in a process that has loaded the library."""
    before = os.environ.get("LD_PRELOAD", "")
    os.environ["LD_PRELOAD"] = library
    try:
        return Worker(side)
    finally:
        os.environ["LD_PRELOAD"] = before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("libraries", nargs="+", metavar="FILE", help="a shared library that replaces malloc")
    parser.add_argument("--sides", nargs="+", choices=("ours", "trl"), default=["ours", "trl"])
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="the first one does not count")
    given = parser.parse_args()
    if missing := [each for each in given.libraries if not Path(each).is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    keys = [(side, library) for side in given.sides for library in ("", *given.libraries)]
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    peaks: dict[tuple[str, str], float] = {}
    with ExitStack() as stack:
        workers = {
            (side, library): stack.enter_context(worker_with(library, f"steps:{side}")) for side, library in keys
        }
        for step in range(given.steps):
            for key, worker in workers.items():
                answer = worker.tell("guided")
                peaks[key] = answer["peak"] / 1e9
                seconds[key] += [answer["seconds"]] if step else []
                name = Path(key[1]).name or "system"
                print(f"step {step + 1}: {key[0]}, {name}: {answer['seconds']:.1f} s, {peaks[key]:.2f} GB", flush=True)
    print(
        "\n| step of | allocator | seconds | of the system's | peak GB | of the system's |\n|---|---|---|---|---|---|"
    )
    for side, library in keys:
        own, plain = statistics.median(seconds[side, library]), statistics.median(seconds[side, ""])
        print(
            f"| {side} | {Path(library).name or 'system'} | {own:.1f} | {own / plain:.2f} | {peaks[side, library]:.2f}"
            f" | {peaks[side, library] / peaks[side, '']:.2f} |"
        )


if __name__ == "__main__":
    main()
