"""Merging Hugging Face folders: safetensors in, safetensors out, everything else carried along from the first model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from cfg_distill.errors import ConfigError
from cfg_distill.folders import is_adapter
from cfg_distill.merging.adapters import merge_adapter_folders
from cfg_distill.merging.arithmetic import listed, merge_tensors, mismatches, not_averaged, tensor_function
from cfg_distill.merging.methods import problems_of_merge
from cfg_distill.merging.outputs import PROVENANCE, carry, problems_of_out, provenance, staged
from cfg_distill.merging.safetensors_io import FolderWeights, write_weights

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
    whole model. Tensor by tensor: memory holds a few tensors, never a model. ``merge.json`` beside the weights records
    the method, the weights and the SHA-256 of every file read.

    Args:
        models: model folders; the first gives the config, the tokenizer and so on.
        weights: as the method asks (:data:`cfg_distill.merging.METHODS`).
        method: ``lerp``, ``slerp``, ``liti``, ``soup``, ``weighted`` or ``ema``.
        out: the folder to write.
        start: the model that all others were trained from, for ``slerp`` and ``liti``.
        overwrite: replace the model folder ``out``.
        max_shard_bytes: weights beyond this size are written as shards with an index.

    Returns:
        The folder written.

    Raises:
        ConfigError: all that is wrong with the request; then all that is wrong with the folders; nothing is written.
    """
    if any(is_adapter(model) for model in models):
        return merge_adapter_folders(models, weights, method, out, start, overwrite)
    out = Path(out).expanduser()
    found = problems_of_merge(method, len(models), weights, start is not None)
    found += problems_of_out(out, models, start, overwrite)
    sources: list[FolderWeights] = []
    for key, path in ([("start", start)] if start is not None else []) + [("models", model) for model in models]:
        try:
            sources.append(FolderWeights(path, key))
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(found)
    _drop_tied_copies(sources)
    found = mismatches([source.signatures() for source in sources], [f"`{source.path}`" for source in sources])
    found = found or _problems_of_values(sources) + _problems_of_configs(sources)
    if found:
        raise ConfigError(found)

    shapes, compute = sources[0].shapes, tensor_function(method, weights)
    dtypes = {name: [source.dtypes[name] for source in sources] for name in shapes}

    def merged(name: str) -> torch.Tensor:
        return merge_tensors((source.tensor(name) for source in sources), dtypes[name], compute)

    with staged(out) as partial:
        carry(sources[-len(models)].folder, partial)
        widest = {name: reduce(torch.promote_types, dtypes[name]) for name in shapes}
        write_weights(partial, shapes, widest, merged, max_shard_bytes)
        table = provenance(method, weights, sources, with_start=start is not None)
        (partial / PROVENANCE).write_text(json.dumps(table, indent=2) + "\n")
    return out


def _drop_tied_copies(sources: list[FolderWeights]) -> None:
    """Some writers store a tied tensor under one name, some under both: a copy that not every folder has is left out.

    The loader ties it again, from the name that stays.
    """
    common = set.intersection(*(set(source.shapes) for source in sources))
    for source in sources:
        for name in sorted(source.shapes.keys() - common):
            twins = (other for other in sorted(common) if source.shapes[other] == source.shapes[name])
            if any(torch.equal(source.tensor(name), source.tensor(twin)) for twin in twins):
                source.drop(name)


def _problems_of_values(sources: list[FolderWeights]) -> list[str]:
    first = sources[0]
    kept = [name for name, dtype in first.dtypes.items() if not_averaged(dtype)]
    unequal = [
        name for name in kept if any(not torch.equal(first.tensor(name), other.tensor(name)) for other in sources)
    ]
    return [f"Integer tensors differ between the models, and have no mean: {listed(unequal)}."] if unequal else []


def _problems_of_configs(sources: list[FolderWeights]) -> list[str]:
    """Equal shapes can hide another model: other numbers of heads, another rotary base, another activation."""
    configs = [_flat(json.loads((source.folder / "config.json").read_text())) for source in sources
               if (source.folder / "config.json").is_file()]  # fmt: skip
    names = sorted({name for config in configs for name in config if not _bookkeeping(name)})
    different = [name for name in names if any(config.get(name) != configs[0].get(name) for config in configs[1:])]
    if not different:
        return []
    values = [f"{name} ({' vs '.join(str(config.get(name)) for config in configs)})" for name in different]
    return [f"The models' config.json differ in {listed(values)}. Only models of one architecture can be merged."]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _bookkeeping(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in BOOKKEEPING or last.endswith("_token_id")
