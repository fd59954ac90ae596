"""Files and folders that are whole or absent; YAML and JSON files that are read within limits, or refused with a reason."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files.documents import parse_yaml, read_json, read_versioned, read_yaml

__all__ = [
    "CARD_KEY",
    "CARRIED_KEY",
    "MAIN_FILE",
    "MERGE_FILE",
    "MODEL_FILES",
    "before_of",
    "damage",
    "make_readable",
    "parse_yaml",
    "problems_of_out",
    "problems_of_place",
    "read_json",
    "read_versioned",
    "read_yaml",
    "resident_peak",
    "staged_folder",
    "strangers",
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


# Folders that are replaced

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


def problems_of_place(out: str | Path) -> list[Problem]:
    """Why a folder could not be written, now or after hours of work; the problem names the key ``out``.

    A file without a name is written where the folder is, or will be, and is gone at once: permissions alone do not tell of a
    read-only disk or of a full one.
    """
    out = Path(out).expanduser()
    try:
        place = out.resolve()
        while not place.exists():
            _length_of_name(place)
            place = place.parent
        if not place.is_dir():  # of `out` itself the caller says whether it may be a file
            text = f"`{place}` is a file, so `{_shortened(out.name)}` cannot lie in it. Name another folder."
            return [] if place == out.resolve() else [Problem("out", text)]
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")
    except OSError as error:
        reason = f"`{_shortened(str(out))}` cannot be written: {error.strerror}."
        return [Problem("out", f"{reason} Make room or change the permissions, or name another folder.")]
    return []


def _length_of_name(place: Path) -> None:
    """A folder is written beside its place first, under a name that is some letters longer."""
    if len(os.fsencode(place.name)) > MOST_BYTES_OF_NAME:
        raise OSError(errno.ENAMETOOLONG, f"the name is longer than {MOST_BYTES_OF_NAME} bytes")


def _shortened(name: str) -> str:
    return name if len(name) <= 120 else f"{name[:117]}..."


def problems_of_out(
    out: str | Path, inputs: Iterable[str | Path], overwrite: bool, known: Collection[str] = MODEL_FILES
) -> list[Problem]:
    """Why a folder must not be made or replaced; the problems name the keys ``out`` and ``overwrite``.

    A folder is replaced when the user asked for it, when it is no input, holds no input and lies in none, and when nothing
    in it is a stranger (:func:`strangers`). An empty folder is as good as none.

    Args:
        out: the folder to write.
        inputs: files and folders that are read.
        overwrite: whether the user allowed to replace the folder.
        known: patterns of the files that may be replaced.
    """
    out = Path(out).expanduser()
    place = out.resolve()
    for path in inputs:
        source = Path(path).expanduser().resolve()
        how = (
            "is" if source == place
            else "holds" if source.is_relative_to(place)
            else "lies in" if source.is_dir() and place.is_relative_to(source)
            else ""
        )  # fmt: skip
        if how:
            return [Problem("out", f"`{out}` {how} the input `{path}`. Name another folder.")]
    if found := problems_of_place(out):
        return found
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    if not overwrite:
        return [
            Problem("out", f"expected a new folder, but `{out}` exists. Name another, or allow it with `@.overwrite`.")
        ]
    if not out.is_dir():
        return [Problem("out", f"expected a folder to replace, but `{out}` is a file. Name another.")]
    if foreign := strangers(out, known):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        return [
            Problem(
                "out",
                f"`{out}` is not replaced, since this package does not write {', '.join(foreign[:3])}{more} there. Move that"
                " away, or name another folder.",
            )
        ]
    return []


# Folders that appear whole


@contextmanager
def staged_folder(out: str | Path) -> Iterator[Path]:
    """A folder to write into that takes the name ``out`` when the block ends without an exception; else it is removed.

    The files are written to ``.NAME.partial`` beside ``out``. They are on the disk before that folder takes the name. Where the
    system can exchange two names at once (Linux), ``out`` is the whole old folder or the whole new one at any moment.
    Elsewhere the old folder is called ``.NAME.replaced`` for the instant between two renames, and the next call restores it.
    Whether ``out`` may be replaced is for the caller to ask (:func:`problems_of_out`).

    Args:
        out: the folder; its parents are made. A link is followed.

    Raises:
        ConfigError: the folder cannot be written, or another process is writing it.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "student"
        >>> with staged_folder(out) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> [path.name for path in out.parent.rglob("*")]
        ['student', 'config.json']
    """
    place = Path(out).resolve()
    staged, replaced, lock = (place.with_name(f".{place.name}.{kind}") for kind in ("partial", "replaced", "lock"))
    with _refusals(out):
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, out)
    try:
        with _refusals(out):
            _restore(replaced, place)
            _remove(staged, replaced)  # left by a process that was killed
            if place.exists() and not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "a file has this name")
            staged.mkdir()
        with _refusals(out, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # other errors may come from what the block reads
            yield staged
        with _refusals(out):
            make_readable(staged)
            for path in [*staged.rglob("*"), staged]:
                _sync(path)
            _put(staged, place, replaced)
            _sync(place.parent)
    finally:
        _restore(replaced, place)
        _remove(staged, replaced)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def make_readable(folder: Path) -> None:
    """Let whoever may read a folder read its files: writers of weights allow their owner only, and a server is another user."""
    readers = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and (mode := path.stat().st_mode) | readers != mode:
            path.chmod(stat.S_IMODE(mode | readers))


@contextmanager
def _refusals(out: str | Path, *kinds: int) -> Iterator[None]:
    """The system's refusals to write, all or of some kinds, as a message."""
    try:
        yield
    except Exception as error:
        number = _refusal(error)
        if not number or (kinds and number not in kinds):
            raise
        text = f"`{out}` cannot be written: {os.strerror(number)}. Make room or change the permissions, or name another folder."
        raise ConfigError(Problem("out", text)) from error


def _refusal(error: Exception) -> int:
    """The number of the system's refusal behind an error; 0 for another error."""
    if isinstance(error, OSError):
        return error.errno or 0
    # safetensors writes in Rust, and has its own exception.
    said = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(said[1]) if said else 0


def _locked(lock: Path, out: str | Path) -> int:
    """The descriptor of a lock that this process alone holds. The system ends the lock with the process."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            text = f"`{out}` is being written by another process. Wait for it, or name another folder."
            raise ConfigError(Problem("out", text)) from error
        except OSError:
            return descriptor  # a file system without locks
        try:
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder removed the file between the two calls


def _put(staged: Path, place: Path, replaced: Path) -> None:
    """Let the staged folder take the place of the old one, which is under one of the other names afterwards."""
    if not place.exists():
        staged.rename(place)
    elif not _exchanged(staged, place):
        place.rename(replaced)
        staged.rename(place)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where the system or the file system cannot."""
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _restore(replaced: Path, place: Path) -> None:
    """Return the old folder to its name, if a process was stopped between two renames."""
    if replaced.exists() and not place.exists():
        replaced.rename(place)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    return "" if part is None else f"its part {part} is damaged"


MAIN_FILE = "checkpoint.pt"
"""In the folder of a sharded checkpoint: all but the shards (:mod:`cfg_distill.checkpoints.shards`)."""


def before_of(file: Path) -> Path:
    """Where the checkpoint is kept that stood under a name before (:class:`cfg_distill.callbacks.AtomicCheckpointIO`)."""
    return file.with_name(f"{file.name}.before")
