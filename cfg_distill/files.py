"""Files that are whole or absent: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(file: str | Path, text: str, durable: bool = True) -> None:
    """Write UTF-8 text; a reader, or a run that starts after a crash, sees the old file or the new one.

    Args:
        file: where; its folder is made.
        text: what.
        durable: wait until it is on the disk, so that a power cut cannot leave an empty file under the final name.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    with staged.open("w", encoding="utf-8") as stream:
        stream.write(text)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    staged.replace(file)
