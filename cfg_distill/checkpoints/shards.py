"""Sharded tensors (FSDP2) in a checkpoint: made whole for one file, or each process's rows in a folder of its own files.

The folder of W processes::

    last.ckpt/
      checkpoint.pt        the checkpoint; in the place of each sharded tensor its number, {"shard": 17}
      shards-0-of-W.pt     the rows of process 0: a list of tensors, by their numbers
      ...

A tensor is cut along its first dimension, so it is whole again when the rows of all processes stand one below the other. All
files hold tensors and plain values: reading them runs no code. (torch's own format for shards has a pickle in it.)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from cfg_distill.errors import ConfigError
from cfg_distill.files import MAIN_FILE, before_of, damage, no_checkpoint
from cfg_distill.files.staged import exchanged, sync

_SHARD = "shard"


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one. Every process must call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor on the device of another, cut into its shards where it has some. No process needs another for it."""
    if isinstance(tensor, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


# One file


def gathered(content: Any, keep: bool) -> Any:
    """A checkpoint with every sharded tensor whole, on the CPU. Every process must call this at the same time.

    Args:
        content: dicts, lists and tensors.
        keep: whether this process needs the result; elsewhere a whole tensor is dropped at once.
    """

    def found(tensor: DTensor) -> Tensor:
        full = tensor.full_tensor()
        return full.cpu() if keep else full.new_empty(0)

    return _replaced(content, _is_sharded, found)


def _replaced(content: Any, some: Callable[[Any], bool], by: Callable[[Any], Any]) -> Any:
    """Dicts and lists with some of their values replaced, in the order in which they stand there."""
    if some(content):
        return by(content)
    if isinstance(content, dict):
        return {key: _replaced(value, some, by) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(_replaced(value, some, by) for value in content)
    return content


def _is_sharded(value: Any) -> bool:
    return isinstance(value, DTensor)


# A folder


def write_folder(content: dict[str, Any], folder: Path, rank: int, world: int, barrier: Callable[[], None]) -> None:
    """Write the files of a checkpoint, whole or not at all: under their final name all of them are on the disk.

    The folder that stood there stays beside it, as ``last.ckpt.before``.

    Args:
        content: the checkpoint, with this process's shards.
        folder: where; all processes see it.
        rank: of this process.
        world: the number of processes.
        barrier: waits for all of them.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if rank == 0:
        remove(partial)
        partial.mkdir(parents=True)
    barrier()
    shards: list[Tensor] = []

    def numbered(tensor: DTensor) -> dict[str, int]:
        shards.append(tensor.to_local().cpu())
        return {_SHARD: len(shards) - 1}

    main = _replaced(content, _is_sharded, numbered)
    _write(shards, partial / _name(rank, world))
    if rank == 0:
        _write(main, partial / MAIN_FILE)
    barrier()
    if rank == 0:
        before = before_of(folder)
        if not folder.exists():
            partial.rename(folder)
        else:
            remove(before)
            if exchanged(partial, folder):
                partial.rename(before)
            else:  # between the two renames only `before` is there, which `--ckpt_path last` finds
                folder.rename(before)
                partial.rename(folder)
        sync(folder.parent)
    barrier()


def _name(rank: int, world: int) -> str:
    return f"shards-{rank}-of-{world}.pt"


def _write(content: Any, file: Path) -> None:
    with file.open("wb") as opened:
        torch.save(content, opened)
        opened.flush()
        os.fsync(opened.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_folder(path: str | Path) -> bool:
    """Whether a sharded checkpoint stands there."""
    return (Path(path) / MAIN_FILE).is_file()


def problem_of_folder(folder: Path) -> str:
    """Why a folder is no whole sharded checkpoint; empty when it is one. Every byte is compared with the checksums."""
    if not is_folder(folder):
        return no_checkpoint(folder)
    files = _files_of(folder)
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        return f"`{folder}` lacks files of its processes: {', '.join(missing) or _name(0, 1)}."
    broken = [f"{file.name}: {problem}" for file in (folder / MAIN_FILE, *files) if (problem := damage(file))]
    return f"`{folder}` cannot be read as a checkpoint: {'; '.join(broken)}." if broken else ""


def _files_of(folder: Path) -> list[Path]:
    """The files of all processes, those that are missing too."""
    found = sorted(folder.glob("shards-*-of-*.pt"))
    world = int(found[0].stem.rpartition("-")[2]) if found else 0
    return [folder / _name(rank, world) for rank in range(world)]


def read_folder(folder: Path, take: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Any]:
    """The checkpoint of a folder, on the CPU, whatever the number of processes that wrote it.

    Args:
        folder: that :func:`problem_of_folder` finds whole.
        take: what to keep of each sharded tensor, which is made whole for it: one at a time.

    Raises:
        ConfigError: files of one folder that do not belong together.
    """
    parts: list[Sequence[Tensor]] = [_read(file) for file in _files_of(folder)]
    if len({len(part) for part in parts}) != 1:
        raise ConfigError(f"`{folder}` holds files of several checkpoints. Take another one.")

    def assembled(mark: dict[str, int]) -> Tensor:
        return take(torch.cat([part[mark[_SHARD]] for part in parts]))

    return _replaced(_read(folder / MAIN_FILE), _is_mark, assembled)


def _is_mark(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {_SHARD}


def _read(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
