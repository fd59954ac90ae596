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
                    if tag not in ("step", "epoch") and text:
                        yield tag, int(float(row["step"])), float(text)
    for file in sorted(run.glob("events.out.tfevents.*")):
        yield from _events(file)


def _events(file: Path) -> Iterator[tuple[str, int, float]]:
    """The scalars of an event file. A record that a killed run has cut short ends it."""
    from tensorboard.compat.proto.event_pb2 import Event

    content, start = file.read_bytes(), 0
    # A record: 8 bytes of its length, 4 of a checksum, the event, 4 of another checksum.
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        if start + 12 + length > len(content):
            return
        event = Event.FromString(content[start + 12 : start + 12 + length])
        start += 16 + length
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                yield value.tag, event.step, value.simple_value
            elif value.metadata.plugin_data.plugin_name == "scalars" and value.tensor.float_val:
                yield value.tag, event.step, value.tensor.float_val[0]
