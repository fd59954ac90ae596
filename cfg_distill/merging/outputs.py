"""What every merge of folders does about its output: refuse, carry along, record, rename into place."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cfg_distill.folders import ADAPTER_CONFIG
from cfg_distill.merging.safetensors_io import INDEX

CARRIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
"""Config, generation config, tokenizer, processor, remote code. No README: a model card speaks of its own model."""
PROVENANCE = "merge.json"


class Source(Protocol):
    """A folder that was read: its path as it was given, and its files of weights."""

    path: str
    files: list[Path]


def problems_of_out(out: Path, models: Sequence[str | Path], start: str | Path | None, overwrite: bool) -> list[str]:
    """Why a merge may not write there: something is there, and not a model that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    if not overwrite:
        return [f"Key `out`: expected a new folder, but `{out}` exists. Name another, or allow it with --overwrite."]
    inputs = [Path(path).expanduser().resolve() for path in (*models, *([start] if start is not None else []))]
    if out.resolve() in inputs:
        return [f"Key `out`: `{out}` is one of the models to merge. Name another folder."]
    if not any((out / name).is_file() for name in ("config.json", ADAPTER_CONFIG, PROVENANCE)):
        return [f"Key `out`: only a model folder can be overwritten, but `{out}` holds no config.json. Name another."]
    return []


def carry(source: Path, target: Path) -> None:
    """Copy what belongs to a model beside its weights, unless it is there already."""
    for pattern in CARRIED:
        for file in source.glob(pattern):
            if file.is_file() and file.name not in (INDEX, PROVENANCE) and not (target / file.name).exists():
                shutil.copy2(file, target / file.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, target / templates.name)


def provenance(method: str, weights: Sequence[float], sources: Sequence[Source], with_start: bool) -> dict[str, Any]:
    """What ``merge.json`` says: the request, and the SHA-256 of every file read."""
    described = [
        {"path": source.path, "sha256": {file.name: sha256(file) for file in source.files}} for source in sources
    ]
    return {
        "method": method,
        "weights": list(weights),
        "models": described[1:] if with_start else described,
        "start": described[0] if with_start else None,
    }


def sha256(path: Path) -> str:
    """Of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside the target, which takes its place when the block ends well, whole or not at all.

    Beside it, hence on its file system: the rename is atomic. What a killed merge left there is cleared first.
    """
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _move(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, out: Path) -> None:
    replaced = out.parent / f".{out.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        os.rename(out, replaced)
    os.rename(partial, out)
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(replaced, ignore_errors=True)
