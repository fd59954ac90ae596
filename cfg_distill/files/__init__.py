"""Files and folders that are whole or absent; YAML and JSON files that are read within limits, or refused with a reason."""

from __future__ import annotations

import json
import os
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from cfg_distill.files.documents import parse_yaml, read_json, read_versioned, read_yaml
from cfg_distill.files.locks import lock
from cfg_distill.files.places import (
    CARD_KEY,
    CARRIED_KEY,
    MERGE_FILE,
    MODEL_FILES,
    expanded,
    problems_of_out,
    problems_of_place,
    strangers,
)
from cfg_distill.files.staged import make_readable, refusal, staged_folder

__all__ = [
    "CARD_KEY",
    "CARRIED_KEY",
    "MAIN_FILE",
    "MERGE_FILE",
    "MODEL_FILES",
    "before_of",
    "damage",
    "expanded",
    "lock",
    "make_readable",
    "no_checkpoint",
    "parse_yaml",
    "problems_of_out",
    "problems_of_place",
    "read_exactly",
    "read_json",
    "read_versioned",
    "read_yaml",
    "refusal",
    "resident_peak",
    "staged_folder",
    "strangers",
    "write_json",
    "write_text",
]


def write_text(file: str | Path, text: str, durable: bool = True) -> None:
    """Write UTF-8 text. A reader, or a run that starts after a crash, sees the old file or the new one.

    Args:
        file: the file to write; its folder is made.
        text: its content.
        durable: wait until the text is on the disk, so that a power cut cannot leave an empty file under the final name.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with staged.open("w", encoding="utf-8") as stream:
            stream.write(text)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        staged.replace(file)
    finally:
        staged.unlink(missing_ok=True)


def write_json(file: str | Path, content: Any) -> None:
    """Write JSON, for :func:`read_json`; whole or not at all, as :func:`write_text`."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def read_exactly(file: Path) -> str:
    """UTF-8 text with its own ends of lines: a prompt may hold a carriage return, as cells of a table made on Windows do."""
    return file.read_bytes().decode("utf-8", errors="replace")


def resident_peak() -> float:
    """The most memory that this process ever held, in bytes; NaN on Windows, which does not say."""
    try:
        import resource
    except ModuleNotFoundError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


# Archives


def damage(file: Path) -> str:
    """What is damaged in a file of torch.save, by the checksums of its archive; empty when it is whole."""
    try:
        with zipfile.ZipFile(file) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        return f"it is cut short, or is no archive that torch.save writes ({error})"
    except OSError as error:
        return f"the system refuses ({error.strerror})"
    except (RuntimeError, zlib.error) as error:  # a flag of encryption, a broken stream
        return f"its archive cannot be read ({error})"
    return "" if part is None else f"its part {part} is damaged"


MAIN_FILE = "checkpoint.pt"
"""In the folder of a sharded checkpoint: all but the shards (:mod:`cfg_distill.checkpoints.shards`)."""


def no_checkpoint(folder: Path) -> str:
    """The sentence about a folder that is no sharded checkpoint: it names a last checkpoint inside of it, if there is one."""
    last = min([*folder.glob("last*.ckpt"), *folder.glob("checkpoints/last*.ckpt")], default=None)
    advice = "It holds no last checkpoint: check the path." if last is None else f"Name a file, such as `{last}`."
    return f"expected a checkpoint, but `{folder}` is a folder without a {MAIN_FILE}. {advice}"


def before_of(file: Path) -> Path:
    """Where the checkpoint is kept that stood under a name before (:class:`cfg_distill.callbacks.AtomicCheckpointIO`)."""
    return file.with_name(f"{file.name}.before")
