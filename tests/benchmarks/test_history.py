"""The history of measurements: what is written with each, the ranges, and the lines of progress. It measures nothing itself."""

from __future__ import annotations

import json
from pathlib import Path

import measure
import pytest
from measure import HISTORY, Row, interleaved, ranges, remember


def test_measurements_are_appended_with_what_they_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "history.json"
    monkeypatch.setattr(measure, "gflops", lambda: 123.4)
    for ratio, threads in ((0.5, "1"), (0.25, "1"), (0.4, "2")):
        monkeypatch.setenv("CFG_DISTILL_BENCH_THREADS", threads)
        remember("loss", [Row("loss: time", "liger", ratio, 0.6, 0.5, True, "1 s : 2 s")], file)
    entries = json.loads(file.read_text())
    assert [entry["threads"] for entry in entries] == [1, 1, 2]
    assert entries[0]["GFLOP/s"] == 123 and {"date", "device", "clock", "MHz", "torch", "commit"} <= entries[0].keys()
    assert "| loss: time | liger | 1 | 0.25 to 0.50 | 2 |\n| loss: time | liger | 2 | 0.40 | 1 |" in ranges(file)


def test_the_kept_history_is_readable() -> None:
    rows = [line.split(" | ") for line in ranges(HISTORY).splitlines()]
    (step,) = (row for row in rows if row[:3] == ["| step, guided teacher", "TRL + guided teacher", "2"])
    least, most = map(float, step[3].split(" to "))  # measurements are only ever added: the range can grow, not shrink
    assert least <= 0.39 and most >= 0.69


def test_every_measurement_prints_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    medians = interleaved({"ours": lambda: 1.5, ("theirs", 16): lambda: 3.0}, runs=2, warm_up=1)
    assert medians == {"ours": 1.5, ("theirs", 16): 3.0}
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6
    assert shown[0] == "  warm-up, 1 of 2: ours 1.5 s" and shown[-1] == "  run 2 of 2, 2 of 2: theirs, 16 3 s"


def test_the_speed_of_a_product_is_measured() -> None:
    assert measure.gflops(size=64, runs=2) > 0
