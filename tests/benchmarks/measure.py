"""How the benchmarks measure: interleaved runs, ratios of medians, peak memory of a process, one table.

    make bench                                the whole table, about 30 minutes on two cores
    CFG_DISTILL_BENCH=quick make bench        one run of each, cold and short: does it all work?
    CFG_DISTILL_BENCH=shared make bench       one thread, and processor time for the clock: on a machine that others use too

    python tests/benchmarks/measure.py        what was measured last, as the table of docs/performance.md

On a machine with a GPU the same table is made there, in bfloat16.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

MODEL = "text:smollm2"
PROMPTS = [
    "Write a short story about a robot who learns to paint.",
    "Describe the sea at night.",
    "Give me three ideas for a birthday party.",
    "Write a haiku about winter.",
    "Why is the sky blue?",
    "Invent a new holiday and explain it.",
    "Write the opening line of a detective novel.",
    "List four uses for an old umbrella.",
]
QUICK = os.environ.get("CFG_DISTILL_BENCH") == "quick"
SHARED = os.environ.get("CFG_DISTILL_BENCH") == "shared"
RUNS, WARM_UP = (1, 0) if QUICK else (5, 1)
SAMPLES, LENGTH, SCALE = 4, (16 if QUICK else 48), 3.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISION: Literal["bfloat16", "float32"] = "bfloat16" if DEVICE == "cuda" else "float32"
DTYPE = getattr(torch, PRECISION)
FOLDER = Path("runs/benchmarks")


def num_threads() -> int:
    """One on a shared machine, else one a core, whatever the tests beside the benchmarks take."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if SHARED else cores


def use_threads() -> None:
    """In every process that measures."""
    torch.set_num_threads(num_threads())


def now() -> float:
    """Seconds; of a GPU, when all that was asked of it is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if SHARED else time.perf_counter()


def interleaved(
    sides: Mapping[str, Callable[[], float | None]], runs: int = RUNS, warm_up: int = WARM_UP
) -> dict[str, float]:
    """The median of each side's seconds. Sides take turns, so that a drifting machine meets them all alike.

    A side returns the seconds it took, or None to be timed here.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(warm_up + runs):
        for name, side in sides.items():
            began = now()
            own = side()
            took = now() - began if own is None else own
            if run >= warm_up:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: that is measured.
        against: what it is divided by.
        ratio: the quotient.
        bar: the least that is wanted, and ``aim`` the most.
        less: whether less is better.
        details: what the ratio is made of.
    """

    what: str
    against: str
    ratio: float
    bar: float
    aim: float
    less: bool
    details: str = ""

    @property
    def verdict(self) -> str:
        """aim, bar or below."""
        reached = [name for name, wanted in (("aim", self.aim), ("bar", self.bar))
                   if (self.ratio <= wanted if self.less else self.ratio >= wanted)]  # fmt: skip
        return reached[0] if reached else "MISSED"

    def __str__(self) -> str:
        sign = "<=" if self.less else ">="
        return (
            f"{self.ratio:7.3f}   {sign} {self.bar:<6.3g}{self.aim:<7.3g}{self.verdict:8}{self.what}, against {self.against}"
            f"  ({self.details})"
        )


def report(name: str, rows: list[Row], about: str) -> None:
    """Print the rows and write them to ``runs/benchmarks/NAME.json``, with what they were measured on."""
    print(f"\n{about}\n{'ratio':>7}   {'bar':9}{'aim':7}")
    for row in rows:
        print(row)
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "machine": machine(), "rows": [asdict(row) | {"verdict": row.verdict} for row in rows]}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def markdown() -> str:
    """All rows that were measured last, as docs/performance.md shows them."""
    lines = ["| what | against | ratio | bar | aim | |", "|---|---|---|---|---|---|"]
    notes = []
    for file in sorted(FOLDER.glob("*.json")):
        content = json.loads(file.read_text())
        for row in content.get("rows", []):
            sign = "at most" if row["less"] else "at least"
            lines.append(
                f"| {row['what']} | {row['against']} | {row['ratio']:.2f} | {sign} {row['bar']:.3g} | {row['aim']:.3g} |"
                f" {row['verdict']}; {row['details']} |"
            )
        notes.append(f"{content['about']}: {', '.join(f'{key} {value}' for key, value in content['machine'].items())}.")
    return "\n".join([*lines, "", *notes])


def machine() -> dict[str, Any]:
    """What a number depends on."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else _processor(),
        "threads": num_threads(),
        "clock": "processor time" if SHARED else "wall time",
        "runs": RUNS,
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = info.read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name + (", AVX-512" if "avx512f" in info.read_text() else "")


def reset_peak() -> float:
    """Forget the peak of this process's memory; bytes it holds now."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # What earlier runs gave back to the allocator and not to the system would hide what this one takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    """Bytes at the peak since :func:`reset_peak`, or since the process began."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return (
        _status("VmHWM") if Path("/proc/self/status").is_file() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    print(markdown())
