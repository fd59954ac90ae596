"""The scalars in the log of a run: TensorBoard's event files, or the CSV file of Lightning's CSVLogger. No torch in here."""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator
from pathlib import Path


def scalars_of(run: Path) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of every scalar of a run."""
    table = run / "metrics.csv"
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                for tag, text in row.items():
                    if tag not in ("step", "epoch") and text and row["step"]:  # a run that was killed cuts its last row
                        yield tag, int(float(row["step"])), float(text)
    for file in sorted(run.glob("events.out.tfevents.*")):
        yield from _events(file)


def seconds_of(run: Path) -> float | None:
    """How long a run has worked, by the times in TensorBoard's event files: from the first entry of each process to its last.

    The time between a stop and the process that goes on is left out. None where there is no such file: a CSV file has no times.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    spans = []
    for file in run.glob("events.out.tfevents.*"):
        if records := [*_records(file)]:
            spans.append([Event.FromString(each).wall_time for each in (records[0], records[-1])])
    seconds, until = 0.0, 0.0
    for begin, end in sorted(spans):  # a process may have opened a second file before it closed the first
        seconds += max(0.0, end - max(begin, until))
        until = max(until, end)
    return seconds if spans else None


def clock(seconds: float) -> str:
    """A time for people.

    Example:
        >>> clock(245), clock(3723)
        ('4:05', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _records(file: Path) -> Iterator[bytes]:
    """The events of a file, as they are stored. A record that a killed run has cut short ends it."""
    content, start = file.read_bytes(), 0
    # A record: 8 bytes of its length, 4 of a checksum, the event, 4 of another checksum.
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        if start + 12 + length > len(content):
            return
        yield content[start + 12 : start + 12 + length]
        start += 16 + length


def _events(file: Path) -> Iterator[tuple[str, int, float]]:
    """The scalars of an event file."""
    from tensorboard.compat.proto.event_pb2 import Event

    for record in _records(file):
        event = Event.FromString(record)
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                yield value.tag, event.step, value.simple_value
            elif value.metadata.plugin_data.plugin_name == "scalars" and value.tensor.float_val:
                yield value.tag, event.step, value.tensor.float_val[0]
