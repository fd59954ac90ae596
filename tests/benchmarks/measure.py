"""How the benchmarks measure: interleaved runs, ratios of medians, peak memory of a process, one table.

    make bench                                the whole table, about 30 minutes on two cores
    CFG_DISTILL_BENCH=quick make bench        one run of each, cold and short: does it all work?
    CFG_DISTILL_BENCH=shared make bench       one thread, and processor time for the clock: on a machine that others use too
    CFG_DISTILL_BENCH_THREADS=1 make bench    on that many threads in place of one per core
    CFG_DISTILL_BENCH_RUNS=3 make bench       medians of three runs in place of five, on a slow machine

    python tests/benchmarks/measure.py        what was measured last, as the table of docs/performance.md
    python tests/benchmarks/measure.py --history    every row by threads: the range of all that was ever measured

All rows but those of ``quick`` are appended to docs/performance_history.json.

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
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
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
RUNS, WARM_UP = (1, 0) if QUICK else (int(os.environ.get("CFG_DISTILL_BENCH_RUNS", "5")), 1)
SAMPLES, LENGTH, SCALE = 4, (16 if QUICK else 48), 3.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISION: Literal["bfloat16", "float32"] = "bfloat16" if DEVICE == "cuda" else "float32"
DTYPE = getattr(torch, PRECISION)
FOLDER = Path("runs/benchmarks")
HISTORY = Path(__file__).parents[2] / "docs" / "performance_history.json"


def num_threads() -> int:
    """As many as are asked for; else one on a shared machine, and one a core elsewhere, whatever other tests take."""
    if asked := os.environ.get("CFG_DISTILL_BENCH_THREADS"):
        return int(asked)
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

    A side returns the seconds it took, or None to be timed here. Each run prints a line: a benchmark of half an hour shows
    where it is.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(warm_up + runs):
        for number, (name, side) in enumerate(sides.items(), start=1):
            began = now()
            own = side()
            took = now() - began if own is None else own
            if run >= warm_up:
                seconds[name].append(took)
            turn = f"run {run - warm_up + 1} of {runs}" if run >= warm_up else "warm-up"
            print(f"  {turn}, {number} of {len(sides)}: {_named(name)} {took:.4g} s", flush=True)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _named(side: object) -> str:
    return ", ".join(map(str, side)) if isinstance(side, tuple) else str(side)


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
    if not QUICK:
        remember(name, rows, HISTORY)


def remember(name: str, rows: Sequence[Row], file: Path) -> None:
    """Append rows to the history of all measurements, with date, machine, threads, clock and the speed of a product.

    Args:
        name: of the benchmark.
        rows: what was measured.
        file: a JSON list, which may not exist yet.
    """
    entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    about = {"date": datetime.now(UTC).date().isoformat(), "benchmark": name, **machine(), "GFLOP/s": round(gflops())}
    entries.append(about | {"rows": [{"what": row.what, "against": row.against, "ratio": round(row.ratio, 4),
                                      "details": row.details} for row in rows]})  # fmt: skip
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    beside.replace(file)


def ranges(file: Path) -> str:
    """Each row of the history on each number of threads: the lowest and the highest ratio, and how often it was measured."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        for row in entry["rows"]:
            found.setdefault((row["what"], row["against"], entry["threads"]), []).append(row["ratio"])
    lines = ["| what | against | threads | ratio | measured |", "|---|---|---|---|---|"]
    for (what, against, threads), ratios in sorted(found.items()):
        low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
        shown = low if low == high else f"{low} to {high}"
        lines.append(f"| {what} | {against} | {threads} | {shown} | {len(ratios)} |")
    return "\n".join(lines)


@cache
@torch.no_grad()
def gflops(size: int = 1024, runs: int = 8, dtype: torch.dtype = DTYPE) -> float:
    """GFLOP/s of a square product by the kernel of this package's layers, in the precision of the benchmarks: the best run."""
    from cfg_distill.generators.linear import product

    use_threads()
    one, other = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(runs):
        began = now()
        product(one, other, None)
        seconds.append(now() - began)
    return 2e-9 * size**3 / min(seconds)


def has_bfloat16() -> bool:
    """Whether products in bfloat16 are worth timing. A processor without them takes fifty times as long as for float32."""
    return 2 * gflops(256, 3, torch.bfloat16) > gflops(256, 3, torch.float32)


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
        "MHz": _megahertz(),
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


def _megahertz() -> int | None:
    """The processor's clock as it runs now; None where nobody says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    rates = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return round(max(rates)) if rates else None


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
    print(ranges(HISTORY) if "--history" in sys.argv[1:] else markdown())
