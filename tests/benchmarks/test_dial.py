"""A step of a LoRA student with a dial, against one without: `python -m pytest tests/benchmarks -s -m bench -k dial`."""

import statistics

import pytest
from measure import RUNS, WARM_UP, Row, interleaved, report
from worker import Worker

pytestmark = pytest.mark.bench


def test_dial() -> None:
    with Worker("steps:adapter") as side:
        worked: dict[str, list[float]] = {"dial": [], "plain": []}

        def tell(word: str) -> float:
            answer = side.tell(word)
            worked[word].append(answer["worked"])
            return answer["seconds"]

        seconds = interleaved({word: lambda word=word: tell(word) for word in worked})
    measured = {word: values[WARM_UP:] for word, values in worked.items()}
    cpu = {word: statistics.median(values) for word, values in measured.items()}
    ranges = ", ".join(f"{word} {min(values):.3f} to {max(values):.3f}" for word, values in measured.items())
    rows = [
        Row("step of a LoRA student with a dial", f"without, {name}", of["dial"] / of["plain"], 1.02, 1.02, True,
            f"{of['dial']:.3f} s : {of['plain']:.3f} s{more}")
        for name, of, more in (("CPU seconds", cpu, f"; {ranges}"), ("wall time", seconds, ""))
    ]  # fmt: skip
    report("dial", rows, f"Training step of a LoRA student of tunes:base, medians of {RUNS} runs in turns")
