"""What a study measured of a model, in the card of a copy, an export or a merge of exactly its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.system import System
from cfg_distill.files import read_json
from cfg_distill.folders.card import tell_measured
from cfg_distill.folders.checksums import sha256
from cfg_distill.folders.names import ADAPTER_CONFIG
from cfg_distill.report.results import FRONT, Results, read_results
from cfg_distill.study.record import RECORD


def tell_study(folder: Path, name: str, near: Iterable[str | Path]) -> str:
    """Write what a study measured into the card of a folder; nothing unless it measured exactly these weights.

    Args:
        folder: an export or a merge.
        name: of the model.
        near: paths that may lie in the folder of a study: of a checkpoint, of students; or the folder itself.

    Returns:
        A sentence on where the numbers are from; empty where there are none.
    """
    for place in _studies(near):
        try:
            results = read_results(place)
        except ConfigError:  # unfinished, or damaged: nothing is known
            continue
        system = next((each for each in results.systems.values() if _is_of(each, results, folder)), None)
        if system is not None:
            tell_point(folder, name, results, system)
            return f"Its card has what {results.folder} measured of these weights."
    return ""


def tell_point(folder: Path, name: str, results: Results, system: System) -> None:
    """Write the point of a system, and that of the guided base, into the card of a folder with its weights."""
    points = {point["name"]: point for point in results.points}
    against: dict[str, Any] | None = None
    with suppress(ConfigError):  # no guided system, or several
        against = points[results.guided().name]
    tell_measured(folder, name, points[system.name], against)


def _studies(near: Iterable[str | Path]) -> Iterator[Path]:
    """The folders of studies around some paths, each once."""
    paths = [Path(each).expanduser().absolute() for each in near]
    found = dict.fromkeys(place for path in paths for place in (path, *path.parents))
    yield from (place for place in found if (place / FRONT).is_file() and (place / RECORD).is_file())


def _is_of(system: System, results: Results, folder: Path) -> bool:
    """Whether a system is a student or merge of a study under its own name, as plain as it is deployed, with these weights."""
    asked = (system.prompt, system.anneal, system.conditioner, system.dial)
    plain = system.guidance == 1 and asked == (None,) * 4 and len(system.training_seeds) <= 1
    if not plain or system.kind not in ("student", "merge") or Path(system.model).name != system.name:
        return False
    try:
        return _weights(results.model_folder(system)) == _weights(folder)
    except ConfigError:  # gone, or no longer those that were evaluated
        return False


def _weights(folder: Path) -> tuple[dict[str, str], object]:
    """The digest of each file of weights; and what an adapter does with them."""
    config = folder / ADAPTER_CONFIG
    files = {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    return files, read_json(config) if config.is_file() else None
