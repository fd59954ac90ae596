"""The file ``checksums.json`` of a model folder: what its weights were when this package wrote them."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from cfg_distill.errors import ConfigError
from cfg_distill.files import write_json

CHECKSUMS = "checksums.json"


def write_checksums(folder: str | Path) -> None:
    """Write the SHA-256 of the safetensors in a folder, and of those in folders inside of it, beside them."""
    weights: dict[Path, dict[str, str]] = {}
    for file in sorted(Path(folder).rglob("*.safetensors")):
        weights.setdefault(file.parent, {})[file.name] = sha256(file)
    for place, sums in weights.items():
        write_json(place / CHECKSUMS, {"sha256": sums})


def refuse_damaged(file: str | Path) -> None:
    """Compare a file of weights with its checksum, where there is one.

    Reading 1 GB takes about a second, once per process.

    Raises:
        ConfigError: the file is not the one that was written.
    """
    file = Path(file)
    try:
        expected = json.loads((file.parent / CHECKSUMS).read_text(encoding="utf-8"))["sha256"].get(file.name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # none of ours
    if expected is None:
        return
    if sha256(file) != expected:
        raise ConfigError(
            f"`{file}` is damaged: its SHA-256 is not the one in `{file.parent / CHECKSUMS}`. Copy it again, or export the"
            f" checkpoint again. If you have changed the weights on purpose, remove their entry from {CHECKSUMS}."
        )


def sha256(file: Path) -> str:
    """The digest of a file, read piece by piece; of one that has not changed since, as it was."""
    stat = file.stat()
    return _digest(str(file.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: str, *state: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
