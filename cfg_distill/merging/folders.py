"""Merging Hugging Face folders: safetensors in, safetensors out, everything else carried along from the first model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Problem, listed
from cfg_distill.files import expanded, problems_of_out, read_json, staged_folder, write_json
from cfg_distill.folders import is_adapter
from cfg_distill.merging.adapters import merge_adapter_folders
from cfg_distill.merging.arithmetic import finite, merge_tensors, mismatches, not_averaged, tensor_function
from cfg_distill.merging.methods import problems_of_merge
from cfg_distill.merging.outputs import carry_of_models, inputs_of, named, provenance, record
from cfg_distill.merging.safetensors_io import FolderWeights, write_weights

CONFIG = "config.json"
BOOKKEEPING = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Keys of config.json that may differ between models of one architecture; so may those that end in ``_token_id``."""


def merge_folders(
    models: Sequence[str | Path],
    weights: Sequence[float],
    method: str,
    out: str | Path,
    start: str | Path | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Merge model folders into a new one, which appears whole or not at all.

    Adapter folders become one adapter folder (:func:`cfg_distill.merging.adapters.merge_adapter_folders`), whole models a
    whole model. Memory holds a few tensors, never a model. ``merge.json`` beside the weights records the method, the weights
    and the SHA-256 of every file read.

    Args:
        models: model folders; the config, the tokenizer and so on are copied from the first.
        weights: as the method asks (:data:`cfg_distill.merging.METHODS`).
        method: ``lerp``, ``slerp``, ``liti``, ``soup``, ``weighted`` or ``ema``.
        out: the folder to write.
        start: the model that all others were trained from, for ``slerp`` and ``liti``.
        overwrite: replace ``out``, if it holds nothing but a model.
        max_shard_bytes: weights beyond this size are written as shards with an index.

    Returns:
        The folder written.

    Raises:
        ConfigError: all that is wrong with the request; then all that is wrong with the folders; then a weight that is no
            number. Nothing is written.
    """
    if any(is_adapter(model) for model in models):
        return merge_adapter_folders(models, weights, method, out, start, overwrite)
    out = expanded(out)
    found = problems_of_merge(method, len(models), weights, start is not None)
    sources: list[FolderWeights] = []
    for key, path in named(models, start):
        try:
            sources.append(FolderWeights(path))
        except ConfigError as error:
            found += error.under(key)
    found += problems_of_out(out, inputs_of(sources), overwrite)
    if found:
        raise ConfigError(found)
    _drop_tied_copies(sources)
    first = sources[-len(models)]
    different = mismatches([source.signatures() for source in sources], [f"`{source.path}`" for source in sources])
    found += different or _problems_of_values(sources) + _problems_of_configs(sources, first)
    if found:
        raise ConfigError(found)

    shapes, compute = sources[0].shapes, tensor_function(method, weights, len(models))
    dtypes = {name: [source.dtypes[name] for source in sources] for name in shapes}

    def merged(name: str) -> Tensor:
        tensor = merge_tensors((source.tensor(name) for source in sources), dtypes[name], compute)
        return finite(tensor, name)

    with staged_folder(out) as folder:
        carry_of_models(sources[-len(models) :], folder)
        widest = {name: reduce(torch.promote_types, dtypes[name]) for name in shapes}
        write_weights(folder, shapes, widest, merged, max_shard_bytes)
        if wider := [dtype for name, dtype in widest.items() if dtype != first.dtypes[name]]:
            _say_dtype(folder / CONFIG, reduce(torch.promote_types, wider))
        table = provenance(method, weights, sources, with_start=start is not None)
        record(folder, out.name, table, sources[-len(models) :], start=start)
    return out


def _say_dtype(config: Path, dtype: torch.dtype) -> None:
    """Correct the dtype in the config of the first model, in which transformers loads: another model has wider weights."""

    def said(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        name = str(dtype).removeprefix("torch.")
        return {key: name if key in ("dtype", "torch_dtype") and each else said(each) for key, each in value.items()}

    if config.is_file() and (changed := said(before := read_json(config))) != before:
        write_json(config, changed)


def _drop_tied_copies(sources: list[FolderWeights]) -> None:
    """Leave out a copy of a tied tensor that not every folder has: some writers store it under one name, some under both.

    The loader ties the tensors again, from the name that stays.
    """
    common = set.intersection(*(set(source.shapes) for source in sources))
    for source in sources:
        for name in sorted(source.shapes.keys() - common):
            twins = (other for other in sorted(common) if source.shapes[other] == source.shapes[name])
            if any(torch.equal(source.tensor(name), source.tensor(twin)) for twin in twins):
                source.drop(name)


def _problems_of_values(sources: list[FolderWeights]) -> list[Problem]:
    first = sources[0]
    kept = [name for name, dtype in first.dtypes.items() if not_averaged(dtype)]
    unequal = [
        name for name in kept if any(not torch.equal(first.tensor(name), other.tensor(name)) for other in sources)
    ]
    text = f"Integer tensors differ between the models, and have no mean: {listed(unequal)}."
    return [Problem("", text)] if unequal else []


def _problems_of_configs(sources: list[FolderWeights], first: FolderWeights) -> list[Problem]:
    """Equal shapes can hide another model: other numbers of heads, another rotary base, another activation."""
    if not (first.folder / CONFIG).is_file():
        text = f"expected {CONFIG} in `{first.path}`, since a merge takes the configuration and tokenizer of its first model."
        return [Problem("models", f"{text} Copy one into the folder, or name a whole model first.")]
    folders = [source.folder for source in sources if (source.folder / CONFIG).is_file()]
    different = _differences([read_json(folder / CONFIG) for folder in folders])
    if different and (read := _as_transformers_reads(folders)):
        different = _differences(read)
    if not different:
        return []
    text = f"The models' {CONFIG} differ in {listed(different)}. Only models of one architecture can be merged. Name others."
    return [Problem("", text)]


def _differences(nested: list[dict[str, Any]]) -> list[str]:
    configs = [_flat(config) for config in nested]
    names = sorted({name for config in configs for name in config if not _bookkeeping(name)})
    different = [name for name in names if any(config.get(name) != configs[0].get(name) for config in configs[1:])]
    return [f"{name} ({' vs '.join(str(config.get(name)) for config in configs)})" for name in different]


def _as_transformers_reads(folders: list[Path]) -> list[dict[str, Any]]:
    """Configs in one form: transformers 4 wrote other names than 5, and other defaults. Empty where one cannot be read."""
    from transformers import AutoConfig

    try:
        return [AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict() for folder in folders]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of a kind that it does not know
        return []


def _flat(config: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _bookkeeping(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in BOOKKEEPING or last.endswith("_token_id")
