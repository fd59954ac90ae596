"""What a study measured of a model, in the card of a copy, an export or a merge of exactly its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.system import System
from cfg_distill.files import expanded, read_json
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
            _tell(folder, name, results, _point(results, system))
            return f"Its card has what {results.folder} measured of these weights."
    return ""


def tell_choice(folder: Path, name: str, results: Results, system: System) -> str:
    """Write what a study measured of a system into the card of a copy of its model; nothing where the weights are not enough.

    Args:
        folder: the copy.
        name: of the model.
        results: of the study.
        system: the system. Of several training seeds the copy is of the first, so the card has the numbers of that run alone.

    Returns:
        A sentence on what the numbers of the study need beside the weights; empty where the weights are enough.
    """
    needed = needs(system)
    if needed:
        settings = ", ".join(f"{key} {value!r}" for key, value in needed.items())
        text = f"The study sampled it with {settings}, which its weights do not hold: set the same."
        return f"{text} So its card has no numbers."
    if len(system.training_seeds) < 2:
        _tell(folder, name, results, _point(results, system))
        return ""
    means = f"The numbers of this choice are means over {len(system.training_seeds)} training seeds"
    run = results.first_run(system)
    if run is None:
        return f"{means}. The copy is of the first one, whose own numbers cannot be read, so its card has none."
    _tell(folder, name, results, run.point())
    return f"{means}. The copy is of the first one, and its card has the numbers of that run alone."


def needs(system: System) -> dict[str, Any]:
    """The settings that a system was sampled with and that its weights, deployed as they are, do not have; empty for none.

    The temperature is not among them: the card names it.
    """
    unset = {
        "guidance": 1.0, "schedule": None, "prompt": None, "conditioner": None, "dial": None, "anneal": None,
        "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    }  # fmt: skip
    return {key: value for key, plain in unset.items() if (value := vars(system)[key]) != plain}


def _point(results: Results, system: System) -> dict[str, Any]:
    return next(point for point in results.points if point["name"] == system.name)


def _tell(folder: Path, name: str, results: Results, point: dict[str, Any]) -> None:
    """Write a point of the front, and that of the guided base, into the card of a folder with its weights."""
    against: dict[str, Any] | None = None
    with suppress(ConfigError):  # no guided system, or several
        against = _point(results, results.guided())
    tell_measured(folder, name, point, against)


def _studies(near: Iterable[str | Path]) -> Iterator[Path]:
    """The folders of studies around some paths, each once."""
    paths = [expanded(each).absolute() for each in near]
    found = dict.fromkeys(place for path in paths for place in (path, *path.parents))
    yield from (place for place in found if (place / FRONT).is_file() and (place / RECORD).is_file())


def _is_of(system: System, results: Results, folder: Path) -> bool:
    """Whether a system is a student or merge of a study under its own name, as plain as it is deployed, with these weights."""
    is_own = system.kind in ("student", "merge") and Path(system.model).name == system.name
    if needs(system) or len(system.training_seeds) > 1 or not is_own:
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
