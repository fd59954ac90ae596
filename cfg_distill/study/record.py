"""The record of a study: the settings that it was begun with, digests of its inputs, and a comparison of two records."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cfg_distill
from cfg_distill.data.reading import SOUNDS
from cfg_distill.errors import ConfigError, Problem, shortened
from cfg_distill.files import read_yaml
from cfg_distill.folders import base_of, find_file, is_adapter, resolve, source
from cfg_distill.study.config import Study
from cfg_distill.study.parts import NOT_IN_0_1

RECORD = "study.json"

READ_WHOLE = 256 * 2**20
"""Bytes. A larger file is known by its size and time of change: a study must not read 100 GB before it starts."""

GROWING = (
    "study.fits",
    "study.merges",
    "study.baselines",
    "study.systems",
    "study.sweeps",
    "study.claims.guards",
    "study.evaluation.metrics",
    "recipes",
    "files",
)
"""Keys under which new names may be added to a study that has begun. Any other difference is a change."""

ADDABLE = (
    "study.claims",
    "study.evaluation.dtype",
    "study.evaluation.stage",
    "study.evaluation.development",
)
"""Keys that may be given where there was nothing. Studies of earlier versions have none of them but the first."""

FREE = (
    "study.out",
    "study.parallel",
    "study.evaluation.timing",
    "study.evaluation.ladder",
    "study.evaluation.audio",
    "study.claims.temperature",
)
"""Keys that may differ, since they change no result of a system. The last one is of an earlier version."""

UNSET = dict.fromkeys(NOT_IN_0_1) | {"overlays": [], "seed_offset": 0, "evaluate": True}
"""Settings of a system, fit or merge that earlier versions did not record, with what they are where they are not given."""


OUTPUTS = ("out", "trainer")
"""Keys that name folders which are written: what lies in them is no input."""

DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
"""A text that may be a class path."""

EMPTY = ("study.sweeps", "study.training_seeds", "study.claims.guards", "study.evaluation.min_p")
"""Keys that earlier versions did not record; empty, they change nothing."""


def record_of(study: Study) -> dict[str, Any]:
    """Everything that decides the results of a study: the file, its recipes, and digests of the files they name."""
    recipes = {name: fit.recipe.values for name, fit in study.fits.items()}
    whole = json.loads(json.dumps({"study": asdict(study), "recipes": recipes}, default=str))
    whole["study"]["evaluation"]["prompts"] = str(study.evaluation.prompts)
    return whole | {"files": digests(whole), "version": cfg_distill.__version__}


def begun_with(folder: Path) -> dict[str, Any] | None:
    """The record of the study in a folder; None where there is none.

    Raises:
        ConfigError: the file of that name is no record of a study.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"study", "recipes", "files"} <= content.keys():
        text = f"`{file}` is no record of a study. Move it away, or name another folder."
        raise ConfigError(Problem("out", text))
    return content


def inputs_of(path: str | Path, record: Mapping[str, Any]) -> dict[str, Path]:
    """The inputs of a study: its file, and every file and folder that the file and the recipes name.

    The trainer of a recipe is left out: it names outputs.
    """
    recipes = [recipe | {"trainer": None} for recipe in record["recipes"].values()]
    file = find_file(path)
    found = {}
    # The file as it is written: of a file of metrics, the record has the content alone.
    for text in dict.fromkeys([str(file), *_strings(read_yaml(file)), *_strings(recipes)]):
        place = _place(text)
        if place is not None and place.exists():
            found[text] = place
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any], key: str = "") -> list[str]:
    """The differences between two records other than additions, one line each."""
    lines = []
    for name in dict.fromkeys([*old, *new]):
        path = f"{key}.{name}" if key else str(name)
        if _is_free(path) or old.get(name, None) == new.get(name, None) or _is_addition(old, new, key, name):
            continue
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            lines += changes(old[name], new[name], path)
        else:
            lines.append(f"{path.removeprefix('study.')}: {_said(old, name)} -> {_said(new, name)}")
    return lines


def _is_free(path: str) -> bool:
    """Whether a key may differ. Whether a fit or merge is evaluated changes no system but its own."""
    return path in FREE or (path.startswith(("study.fits.", "study.merges.")) and path.endswith(".evaluate"))


def _is_addition(old: Mapping[str, Any], new: Mapping[str, Any], key: str, name: Any) -> bool:
    """Whether a key, which differs, only adds to a study: everything that it has made stays as it is."""
    path = f"{key}.{name}" if key else str(name)
    before, after = old.get(name), new.get(name)
    if name not in old and (
        key in GROWING or (name in UNSET and after == UNSET[name]) or (path in EMPTY and not after)
    ):
        return True
    if path in ADDABLE and not before:
        return True
    if not isinstance(after, list):
        return False
    if key.startswith("study.sweeps."):  # a longer sweep
        return set(before or []) <= set(after)
    # Further runs of the same training. A second run is a change: it moves the first one into a folder of its own.
    return path == "study.training_seeds" and len(before or []) > 1 and after[: len(before or [])] == before


def _said(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        return "nothing"
    return shortened(json.dumps(record[name]), 60)


def digests(content: Any) -> dict[str, str]:
    """The digest of every file, model folder, saved dataset and folder of sound that a nested config names."""
    found = {text: path for text in sorted(set(_strings(content))) if (path := _existing(text)) is not None}
    data = {text: path for text in sorted(set(_strings(content, OUTPUTS)) - found.keys()) if (path := _data(text))}
    # On another base, an adapter is another model.
    bases = {text: _existing(base_of(path)) for text, path in found.items() if is_adapter(path)}
    models = {text: digest([path] + [base for base in [bases.get(text)] if base]) for text, path in found.items()}
    return models | {text: _digest_of_data(path) for text, path in data.items()}


def prepare(content: Any) -> None:
    """Convert the GGUF models that a nested config names, where the user sees it, and before workers need them."""
    for text in sorted(set(_strings(content))):
        if (found := _existing(text)) is not None and found.suffix == ".gguf":
            resolve(text)


def _strings(content: Any, but: Collection[str] = ()) -> Iterator[str]:
    """All texts in a nested config, those under some keys left out."""
    if isinstance(content, Mapping):
        content = [value for key, value in content.items() if key not in but]
    if isinstance(content, str):
        yield content
    elif isinstance(content, Iterable):
        for each in content:
            yield from _strings(each, but)


def _existing(text: str) -> Path | None:
    """The file or model folder that a text names, if it names one."""
    path = _place(text)
    return path if path and (path.is_file() or (path / "config.json").is_file() or is_adapter(path)) else None


def _data(text: str) -> Path | None:
    """The saved dataset or the folder of sound that a text names, if it names one."""
    path = _place(text)
    if path is None or not path.is_dir() or Path.cwd().is_relative_to(path.resolve()):
        return None
    is_data = (path / "dataset_info.json").is_file() or any(file.suffix.lower() in SOUNDS for file in path.rglob("*"))
    return path if is_data else None


def _digest_of_data(folder: Path) -> str:
    """A digest of all files below a folder; of many bytes, sizes and times of change tell."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    read = sum(file.stat().st_size for file in files.values()) <= READ_WHOLE
    parts = [
        [name, digest([file]) if read else (file.stat().st_size, file.stat().st_mtime_ns)]
        for name, file in files.items()
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _place(text: str) -> Path | None:
    """The path that a text would name; None for a text that can name none."""
    if not text or len(text) > 1000 or "\n" in text:
        return None
    try:
        # A packaged model is known by the file it came as: the cache it was converted into may be deleted and made anew.
        path = source(text) or find_file(text)
        path.exists()
    except (ConfigError, OSError, ValueError):
        return None  # no model of that name, a name that is too long, or one with a zero byte: any other text
    return path


def digest(paths: Iterable[Path]) -> str:
    """One digest over files, and over the files directly in folders; names of temporary files left out."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]
        for file in files:
            total.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            if file.stat().st_size > READ_WHOLE:
                total.update(str(file.stat().st_mtime_ns).encode())
            else:
                with file.open("rb") as stream:
                    total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def source_digest() -> str:
    """A digest of this package's own code: a study notices that it goes on under other code."""
    root = Path(cfg_distill.__file__).parent
    # callbacks is a link in a checkout, and rglob follows none.
    return digest([*sorted(root.rglob("*.py")), *sorted((root / "callbacks").glob("*.py"))])


def own_code(content: Any) -> dict[str, str]:
    """The digests of the user's own code: of the modules, or packages, that the classes of a nested config are named by.

    Code in the current folder or on the Python path counts; this package and installed ones do not. Nothing is imported, so
    what these modules import is not followed.

    Returns:
        The path of each module within the folder where Python finds it -> digest.
    """
    found: dict[str, str] = {}
    for text in set(_strings(content)):
        try:
            if DOTTED.fullmatch(text) and not _is_there(text) and (module := _own_module(text)):
                name, files = module
                found[name] = digest(files)
        except OSError:  # a text too long for the name of a file, or a folder that must not be read
            continue
    return dict(sorted(found.items()))


def _is_there(text: str) -> bool:
    """Whether a text names a file or folder: ``prompts.txt`` is no class of a module ``prompts``."""
    place = _place(text)
    return place is not None and place.exists()


def _own_module(dotted: str) -> tuple[str, list[Path]] | None:
    """The module, or the package, that a class is named by, and its files; None for installed code, or none."""
    *parents, _ = dotted.split(".")
    if parents[0] == cfg_distill.__name__:
        return None
    for folder in map(Path, ["", *sys.path]):  # a worker looks in the current folder first
        package = folder.joinpath(*parents)
        module = package.with_suffix(".py")
        if (is_package := (package / "__init__.py").is_file()) or module.is_file():
            if _is_installed(folder):
                return None
            files = sorted(package.glob("*.py")) if is_package else [module]
            return (package if is_package else module).relative_to(folder).as_posix(), files
    return None


def _is_installed(folder: Path) -> bool:
    standard = Path(sysconfig.get_path("stdlib"))
    return folder.is_relative_to(standard) or bool({"site-packages", "dist-packages"} & set(folder.parts))
