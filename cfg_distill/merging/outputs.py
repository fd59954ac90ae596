"""What every merge of folders does about its output: carry files along, and record where the weights came from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cfg_distill.files import CARRIED_KEY, MERGE_FILE, strangers, write_json
from cfg_distill.folders import CHECKSUMS, INDEX, sha256, write_checksums
from cfg_distill.folders.card import write_card
from cfg_distill.folders.history import history_of, of_merge, shown

CARRIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
"""Config, generation config, tokenizer, processor, remote code. No README: a model card speaks of its own model."""
SAMPLING = "generation_config.json"


class Source(Protocol):
    """A folder that was read: its path as it was given, and its files of weights."""

    path: str
    folder: Path
    files: list[Path]


def named(models: Sequence[str | Path], start: str | Path | None) -> list[tuple[str, str | Path]]:
    """Every folder of a merge with the key that names it, the start model first."""
    return [*([] if start is None else [("start", start)]), *(("models", model) for model in models)]


def inputs_of(sources: Sequence[Source]) -> list[Path]:
    """The folders that a merge reads, and the files, which may be links to elsewhere."""
    return [path for source in sources for path in (source.folder, *source.files)]


def carry(source: Path, target: Path) -> None:
    """Copy the files that belong to a model beside its weights, unless they are there already."""
    for pattern in CARRIED:
        for file in source.glob(pattern):
            if file.is_file() and file.name not in (INDEX, MERGE_FILE, CHECKSUMS) and not (target / file.name).exists():
                shutil.copy2(file, target / file.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir() and not (target / templates.name).exists():
        shutil.copytree(templates, target / templates.name)


def carry_of_models(models: Sequence[Source], target: Path) -> None:
    """Copy what lies beside the weights: from the first model, or from the first one that can serve where it cannot.

    A folder without a tokenizer cannot be sampled. Settings of sampling that are a base's may guide a student once more.
    """
    carry(models[0].folder, target)
    if not _has_tokenizer(target) and (other := next((m.folder for m in models if _has_tokenizer(m.folder)), None)):
        carry(other, target)
    students = (model for model in models if (known := history_of(model.path)) and known.distilled)
    if (student := next(students, None)) and (settings := student.folder / SAMPLING).is_file():
        shutil.copy2(settings, target / SAMPLING)


def _has_tokenizer(folder: Path) -> bool:
    return any(folder.glob("tokenizer*"))


def provenance(
    method: str, weights: Sequence[float], sources: Sequence[Source], with_start: bool, start: str | None = None
) -> dict[str, Any]:
    """The content of ``merge.json``: the request, and the SHA-256 of every file read. Folders are told by their names alone.

    Args:
        method: of the merge.
        weights: of the merge.
        sources: of the merge, the start model first where there is one.
        with_start: whether the first source is the start model.
        start: the name of a start model that was not read.
    """
    described = [
        {"path": shown(source.path), "sha256": {file.name: sha256(file) for file in source.files}} for source in sources
    ]
    return {
        "method": method,
        "weights": list(weights),
        "models": described[1:] if with_start else described,
        "start": described[0] if with_start else None if start is None else shown(start),
    }


def record(
    folder: Path,
    name: str,
    table: dict[str, Any],
    models: Sequence[Source],
    base: str | None = None,
    start: str | Path | None = None,
) -> None:
    """Write the checksums of the weights, ``merge.json`` and the model card.

    ``merge.json`` also names carried files of unusual names: the folder can then be replaced as a whole.

    Args:
        folder: of the merge.
        name: of the folder once it is whole.
        table: see :func:`provenance`.
        models: the sources without the start model.
        base: of adapters.
        start: the folder that all models were trained from, where it was read.
    """
    write_checksums(folder)
    names = [shown(each.path) for each in models]
    names = [one if names.count(one) == 1 else f"{one} ({number})" for number, one in enumerate(names, start=1)]
    paths = {one: each.path for one, each in zip(names, models, strict=True)}
    write_card(folder, name, of_merge(paths, table["method"], table["weights"], base, start))
    unusual = strangers(folder)
    table |= {CARRIED_KEY: unusual} if unusual else {}
    write_json(folder / MERGE_FILE, table)
