"""Reading and writing the weights of a Hugging Face folder one tensor at a time, sharded or not.

The library's writer needs every tensor of a file at once, which is the whole model. The format is a length, a JSON header
and the bytes (github.com/huggingface/safetensors, "Format"). Shapes are known before the values. So the header is written
first, and the tensors are streamed behind it:

    | 8 bytes: length of the header | header: name -> dtype, shape, offsets | tensor | tensor | ...
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError
from cfg_distill.files import expanded, write_json
from cfg_distill.folders import INDEX, open_weights, problems_of_index, resolve, shards_of
from cfg_distill.folders.adapters import DTYPES
from cfg_distill.merging.arithmetic import finite, not_averaged

SINGLE = "model.safetensors"
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".gguf")
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class FolderWeights:
    """The weights of a model folder: headers are read at once, values when asked.

    Args:
        path: a folder with ``model.safetensors``, or with shards and their index; or ``tunes:base``.

    Attributes:
        shapes, dtypes: of each tensor, in the order of the files.

    Raises:
        ConfigError: no such folder, no safetensors in it, a shard missing or truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.folder = expanded(resolve(self.path))
        self.files = self._files()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._file_of: dict[str, Path] = {}
        self._handles: dict[Path, Any] = {}
        for file in self.files:
            self._read_header(file)

    def tensor(self, name: str) -> Tensor:
        """The values of a tensor.

        Raises:
            ConfigError: some are NaN or infinite.
        """
        return finite(self._handles[self._file_of[name]].get_tensor(name), name, self.path)

    def signatures(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        """The shape of each tensor, and whether it is averaged: these must agree between models."""
        return {name: (shape, not_averaged(self.dtypes[name])) for name, shape in self.shapes.items()}

    def drop(self, name: str) -> None:
        """Leave a tensor out."""
        del self.shapes[name], self.dtypes[name], self._file_of[name]

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            raise ConfigError(f"expected a model folder, but there is none at `{self.path}`.")
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        if not (self.folder / INDEX).is_file():
            others = sorted(file.name for file in self.folder.iterdir() if file.suffix in SUFFIXES)
            what = f"only {', '.join(others)}" if others else "no weights"
            raise ConfigError(
                f"expected {SINGLE} (or its shards and {INDEX}) in `{self.path}`, but found {what}."
                " Save the model with transformers' save_pretrained, or a checkpoint with `cfg-distill export`."
            )
        if problems := problems_of_index(self.folder):
            raise ConfigError(problems)
        return [self.folder / shard for shard in shards_of(self.folder)]

    def _read_header(self, file: Path) -> None:
        opened = self._handles[file] = open_weights(file)
        for name in opened.keys():  # noqa: SIM118 - no mapping
            view = opened.get_slice(name)
            if view.get_dtype() not in DTYPES:
                raise ConfigError(
                    f"`{file}` holds {name} as {view.get_dtype()}; expected one of {list(DTYPES)}."
                    " Quantised weights have no mean: merge first, quantise then."
                )
            self.shapes[name], self.dtypes[name] = tuple(view.get_shape()), DTYPES[view.get_dtype()]
            self._file_of[name] = file


def write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    tensor: Callable[[str], Tensor],
    max_shard_bytes: int,
) -> None:
    """Stream tensors into ``model.safetensors``, or into shards with an index when they exceed the size.

    Args:
        folder: where to write.
        shapes: of each tensor, by name.
        dtypes: of each tensor, by name.
        tensor: returns the values of a name. Asked once per name; the values are dropped before the next.
        max_shard_bytes: the largest file; a single larger tensor has a file of its own.
    """
    sizes = {name: torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in sorted(shapes):
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + sizes[name] > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0], shapes, dtypes, tensor)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, names, shapes, dtypes, tensor)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    write_json(folder / INDEX, index)


def write_file(
    path: Path,
    names: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    tensor: Callable[[str], Tensor],
) -> None:
    """Stream tensors into one file; arguments as :func:`write_weights`."""
    # Wide dtypes first, as the library does: then every tensor is aligned to its own width.
    names = sorted(names, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + torch.Size(shapes[name]).numel() * dtypes[name].itemsize
        header[name] = {"dtype": NAMES[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = tensor(name)
            if tuple(values.shape) != tuple(shapes[name]) or values.dtype != dtypes[name]:
                raise ValueError(f"{name}: {values.dtype} {list(values.shape)} is not what the header says.")
            file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
