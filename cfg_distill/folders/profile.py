"""The file ``cfg_distill.json`` of a model folder: how samples are rendered, which metrics suit them, what tests these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, nearest
from cfg_distill.files import expanded, read_json, write_json
from cfg_distill.folders.hub import ask_hub
from cfg_distill.folders.names import base_of, is_adapter, source

PROFILE = "cfg_distill.json"
HISTORY = "history"
"""The key of how a folder was made (:mod:`cfg_distill.folders.history`). It is no setting, and is not carried along."""

GENERATOR = "generator"
"""The key of the generator that reads the folder."""


@dataclass(frozen=True)
class Profile:
    """The content of ``cfg_distill.json``. Every key may be left out.

    Attributes:
        renderer: the class path of a :class:`cfg_distill.evaluation.Renderer`: how samples are shown and written. Empty:
            texts stay texts, and waveforms become WAV files.
        metrics: the metrics of ``cfg-distill evaluate`` where the user names none: name -> class_path and init_args, or a
            YAML file of them that lies in the working folder or ships with the package (``recipes/...``).
        ladder: the class path of a :class:`cfg_distill.evaluation.Ladder`: samples whose order is known, by which ``cfg-distill
            validate-metrics`` tests the metrics. Empty: chosen by the metrics.
        generator: the generator that reads the folder, a name of :mod:`cfg_distill.generators.loading`, where the config's
            ``model_type`` does not tell it.
    """

    renderer: str = ""
    metrics: str | Mapping[str, Any] = field(default_factory=dict)
    ladder: str = ""
    generator: str = ""


def is_trusted(name: str, trust: Sequence[str] = (), package: str = "cfg_distill") -> bool:
    """Whether data, such as a model folder or a checkpoint, may name a class: what it names is imported, and so run.

    Args:
        name: the class path.
        trust: modules, or packages, that the user trusts.
        package: of ours, whose classes any data may name.
    """
    return any(name.startswith(f"{module}.") for module in (package, *trust) if module)


def profile_file(path: str | Path) -> Path | None:
    """The ``cfg_distill.json`` of a model folder or hub name; of an adapter without one, that of its base; None without.

    Raises:
        ConfigError: no such shipped model, or an adapter that names no base.
    """
    for each in dict.fromkeys((str(path), base_of(path))):
        folder = source(each) or expanded(each)
        if (folder / PROFILE).is_file() and not _is_history_alone(folder):
            return folder / PROFILE
    return None if folder.exists() else _from_hub(str(folder))


def _is_history_alone(folder: Path) -> bool:
    """Whether an adapter leaves its settings to its base: its file then says how it was made, and what reads it."""
    settings = {each.name for each in fields(Profile)} - {GENERATOR}
    others = read_json(folder / PROFILE).keys() - {HISTORY, GENERATOR}  # a misspelled setting is told as one
    return is_adapter(folder) and not any(key in settings or nearest(key, settings) for key in others)


def profile_of(path: str | Path) -> Profile | None:
    """The profile of a model folder, adapter folder or hub name; None where it has none.

    Unknown keys are skipped, so that a later release may add some; a misspelled one is refused.

    Raises:
        ConfigError: the file is no JSON object of such keys; see also :func:`profile_file`.
    """
    file = profile_file(path)
    if file is None:
        return None
    content = read_json(file)
    known = {each.name for each in fields(Profile)}
    found = [
        f"File `{file}`: the key `{key}` is unknown.{hint}"
        for key in content
        if key not in {*known, HISTORY} and (hint := nearest(key, known))
    ]
    for key, kinds in (("renderer", str), ("metrics", (str, dict)), ("ladder", str), (GENERATOR, str)):
        if key in content and not isinstance(content[key], kinds):
            wanted = {
                "metrics": "a YAML file, or names with class_path and init_args",
                GENERATOR: "the name of a class",
            }.get(key, "a class path")
            found.append(f"File `{file}`: expected {wanted} as `{key}`, but got {content[key]!r}.")
    if found:
        raise ConfigError(found)
    return Profile(**{key: value for key, value in content.items() if key in known})


def copy_profile(path: str | Path, folder: str | Path) -> None:
    """Carry the profile of a model, where it has one, into a folder that is written from it."""
    file = profile_file(path)
    settings = {} if file is None else {key: value for key, value in read_json(file).items() if key != HISTORY}
    if settings:
        write_json(Path(folder) / PROFILE, settings)


def add_setting(folder: str | Path, key: str, value: str) -> None:
    """Write a setting into the profile of a folder, beside the others."""
    file = Path(folder) / PROFILE
    content = read_json(file) if file.is_file() else {}
    write_json(file, {**content, key: value})


def generator_named(path: str | Path) -> str:
    """The generator that a local folder names, or the base of an adapter; empty without."""
    for each in dict.fromkeys((str(path), base_of(path))):
        file = (source(each) or expanded(each)) / PROFILE
        if file.is_file() and (name := read_json(file).get(GENERATOR)):
            return str(name)
    return ""


def _from_hub(name: str) -> Path | None:
    """The file of a hub repository, from its cache or the network; None where there is none, or no network."""
    from transformers.utils import cached_file

    ask_hub(name)
    try:
        found = cached_file(
            name,
            PROFILE,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such repository, no such name
        return None
    return None if found is None else Path(found)
