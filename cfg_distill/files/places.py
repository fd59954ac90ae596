"""Where a folder may be written, and which folder may be replaced: one of files that this package wrote."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from cfg_distill.errors import Problem, listed, shortened

MOST_BYTES_OF_NAME = 240
"""File systems take 255 bytes, and a staged folder needs some for itself."""
MERGE_FILE, CARRIED_KEY = "merge.json", "carried"
"""Where a merge names the files that it took along under unusual names."""
CARD_KEY = "card"
"""Where ``cfg_distill.json``, under ``history``, holds the SHA-256 of the model card that was written."""
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",  # sentencepiece
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
    "processing_*.py",
    MERGE_FILE,
    "cfg_distill.json",
    "checksums.json",
    "LICENSE*",
    "NOTICE*",
)
"""All that an export or a merge writes, as patterns of names. A model card (README.md) is none of them: people write and edit
those, so only a card that is still as it was written counts as one of ours."""


def strangers(folder: str | Path, known: Collection[str] = MODEL_FILES) -> list[str]:
    """The files in a folder that this package does not write there, by their paths inside of it.

    A link is always a stranger, and so is a folder without a known file in it. A file that a merge took along is none: the
    folder's ``merge.json`` names it.

    Args:
        folder: an existing folder.
        known: patterns of the paths of known files; a ``*`` does not cross a slash.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("config.json", "thesis.tex"):
        ...     (folder / name).touch()
        >>> strangers(folder)
        ['thesis.tex']
    """
    folder = Path(folder)
    known = [*known, *map(glob.escape, [*_carried(folder), *_own_cards(folder)])]
    paths = [path.relative_to(folder) for path in folder.rglob("*")]
    ours = {
        path for path in paths if _is_plain_file(folder / path) and any(_matches(path, pattern) for pattern in known)
    }
    filled = {parent for path in ours for parent in path.parents}
    return sorted(str(path) for path in paths if path not in ours and not (path in filled and (folder / path).is_dir()))


def _matches(path: Path, pattern: str) -> bool:
    return path.match(pattern) and len(path.parts) == len(Path(pattern).parts)


def _carried(folder: Path) -> list[str]:
    try:
        return list(map(str, json.loads((folder / MERGE_FILE).read_text(encoding="utf-8"))[CARRIED_KEY]))
    except (OSError, ValueError, LookupError, TypeError):  # no merge, or none that took anything along
        return []


def _own_cards(folder: Path) -> list[str]:
    """The model cards in a folder that nobody has edited since this package wrote them."""
    found = []
    for card in folder.rglob("README.md"):
        try:
            history = json.loads((card.parent / "cfg_distill.json").read_text(encoding="utf-8"))["history"]
            if history[CARD_KEY] == hashlib.sha256(card.read_bytes()).hexdigest():
                found.append(str(card.relative_to(folder)))
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return found


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def expanded(path: str | Path) -> Path:
    """The path with the home folder in the place of a leading ``~``; unchanged where there is no such home folder."""
    return Path(os.path.expanduser(path))


def problems_of_place(out: str | Path) -> list[Problem]:
    """Why a folder could not be written, now or after hours of work; the problem names the key ``out``.

    A file without a name is written where the folder is, or will be, and is gone at once: permissions alone do not tell of a
    read-only disk or of a full one.
    """
    out = expanded(out)
    try:
        place = out.resolve()
        while not place.exists():
            _length_of_name(place)
            place = place.parent
        if not place.is_dir():  # of `out` itself the caller says whether it may be a file
            text = f"`{place}` is a file, so `{shortened(out.name, 120)}` cannot lie in it. Name another folder."
            return [] if place == out.resolve() else [Problem("out", text)]
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")
    except OSError as error:
        reason = f"`{shortened(str(out), 120)}` cannot be written: {error.strerror}."
        return [Problem("out", f"{reason} Make room or change the permissions, or name another folder.")]
    return []


def _length_of_name(place: Path) -> None:
    """A folder is written beside its place first, under a name that is some letters longer."""
    if len(os.fsencode(place.name)) > MOST_BYTES_OF_NAME:
        raise OSError(errno.ENAMETOOLONG, f"the name is longer than {MOST_BYTES_OF_NAME} bytes")


def problems_of_out(
    out: str | Path,
    inputs: Iterable[str | Path],
    overwrite: bool,
    known: Collection[str] = MODEL_FILES,
    whole: bool = True,
) -> list[Problem]:
    """Why a folder must not be made or replaced; the problems name the keys ``out`` and ``overwrite``.

    A folder is replaced when the user asked for it, when it is no input, holds no input and lies in none, and when nothing
    in it is a stranger (:func:`strangers`). An empty folder is as good as none.

    Args:
        out: the folder to write.
        inputs: files and folders that are read.
        overwrite: whether the user allowed to replace the folder.
        known: patterns of the files that may be replaced.
        whole: whether the folder is replaced as a whole (:func:`cfg_distill.files.staged_folder`), and not file by file. The
            current folder is then no output: the shell that stands in it would stand in a folder that is gone.
    """
    out = expanded(out)
    place = out.resolve()
    for path in inputs:
        source = expanded(path).resolve()
        how = (
            "is" if source == place
            else "holds" if source.is_relative_to(place)
            else "lies in" if source.is_dir() and place.is_relative_to(source)
            else ""
        )  # fmt: skip
        if how:
            return [Problem("out", f"`{out}` {how} the input `{path}`. Name another folder.")]
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the shell stands in a folder that is gone
        here = None
    if whole and here is not None and here.is_relative_to(place):
        how = "is" if place == here else "holds"
        text = f"expected a folder to replace as a whole, but `{out}` {how} the current folder."
        return [Problem("out", f"{text} Name a folder that is not the current one: `{out / 'NAME'}`.")]
    if found := problems_of_place(out):
        return found
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    if not out.is_dir():
        return [Problem("out", f"expected a folder, but `{out}` is a file. Name another.")]
    if not overwrite:
        return [
            Problem("out", f"expected a new folder, but `{out}` exists. Name another, or allow it with `@.overwrite`.")
        ]
    if foreign := strangers(out, known):
        return [
            Problem(
                "out",
                f"`{out}` is not replaced, since this package does not write {listed(foreign, 3)} there. Move that"
                " away, or name another folder.",
            )
        ]
    return []
