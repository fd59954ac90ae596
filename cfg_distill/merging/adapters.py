r"""Merging LoRA adapters of one base, exactly, without the base.

A merge of models :math:`W_0 + \Delta_i` is :math:`W_0 + \sum_i c_i \Delta_i`, and a sum of low-rank changes is one of the
sum of the ranks: :math:`\sum_i c_i s_i B_i A_i = [c_1 s_1 B_1, c_2 s_2 B_2, \ldots]\,[A_1; A_2; \ldots]`. Averaging the factors
instead would make :math:`(\sum_i c_i B_i)(\sum_j c_j A_j)`, with products of one model's B and another's A.

Shapes: R rank, I inputs, O outputs of a layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError
from cfg_distill.folders import ADAPTER_WEIGHTS, is_adapter, whole_path
from cfg_distill.folders.adapters import Adapter, AdapterFolder, Factors, config_of, tensors_of, write_config
from cfg_distill.merging.arithmetic import SMALL_SINE, listed
from cfg_distill.merging.methods import METHODS, problems_of_merge
from cfg_distill.merging.outputs import PROVENANCE, carry, problems_of_out, provenance, sha256, staged
from cfg_distill.merging.safetensors_io import FolderWeights, write_file

T = TypeVar("T")


def merge_adapters(
    method: str, adapters: Sequence[Adapter], weights: Sequence[float] = (), start: Adapter | None = None
) -> Adapter:
    """Merge adapters of one base by the name of a method; the result stands for the merge of the whole models.

    Args:
        method: a name of :data:`METHODS`.
        adapters: the models.
        weights: as the method asks.
        start: the model that all others were trained from, for ``slerp`` and ``liti``; None is the base itself.

    Returns:
        Layer -> its change. Where several models change a layer, its rank is the sum of theirs.

    Raises:
        ConfigError: the request does not fit the method, or shapes differ.
    """
    found = problems_of_merge(method, len(adapters), weights, start is not None or METHODS[method].start)
    every = [start or {}, *adapters]
    found += _problems_of_shapes([{name: f.delta_shape for name, f in adapter.items()} for adapter in every],
                                 ["start", *(f"model {number}" for number in range(1, len(every)))])  # fmt: skip
    if found:
        raise ConfigError(found)
    changes = {name: [adapter.get(name) for adapter in every] for adapter in every for name in adapter}
    used = {layer: terms for layer, each in changes.items() if (terms := _terms(method, weights, each))}
    return {layer: concatenated(terms) for layer, terms in (used or _zero(changes)).items()}


def concatenated(terms: Sequence[tuple[float, Factors]]) -> Factors:
    """The sum of changes, each times its coefficient, as one change of the sum of their ranks.

    Computed in float32 or wider, returned in the widest dtype. A single change keeps its scale and, at coefficient 1, its
    bits.
    """
    (first, only), *others = terms
    if not others and first == 1:
        return only
    dtype = terms[0][1].a_RI.dtype
    for _, factors in others:
        dtype = torch.promote_types(dtype, factors.a_RI.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    scale = 1.0 if others else only.scale
    a_RI = torch.cat([factors.a_RI.to(wide) for _, factors in terms])
    b_OR = torch.cat([factors.b_OR.to(wide) * (share * factors.scale / scale) for share, factors in terms], dim=1)
    return Factors(a_RI.to(dtype), b_OR.to(dtype), scale)


def _zero(changes: Mapping[str, Sequence[T | None]]) -> dict[str, list[tuple[float, T]]]:
    """One change a layer, times 0: the base itself, as an adapter that peft reads, where nothing is left of any model."""
    return {layer: [(0.0, next(one for one in each if one is not None))] for layer, each in changes.items()}


def inner(one: Factors, other: Factors) -> float:
    r"""The inner product of two changes from their factors alone.

    .. math:: \langle s B A,\ s' B' A' \rangle = s\,s' \sum_{rr'} (B^\top B')_{rr'} (A A'^\top)_{rr'}

    In float64: the cosine of a small angle is the difference of large sums.
    """
    b_RR = one.b_OR.double().T @ other.b_OR.double()
    a_RR = one.a_RI.double() @ other.a_RI.double().T
    return one.scale * other.scale * float((b_RR * a_RR).sum())


def _terms(method: str, weights: Sequence[float], changes: Sequence[Factors | None]) -> list[tuple[float, Factors]]:
    """Coefficient and change of each model that has a part in a layer, the start model first."""
    shares = _arc(weights[-1], changes) if method == "slerp" else _shares(method, weights, len(changes) - 1)
    return [(share, change) for share, change in zip(shares, changes, strict=True) if change is not None and share]


def _shares(method: str, weights: Sequence[float], number: int) -> list[float]:
    """The coefficients of the start model and the others, where they do not depend on the values."""
    if method == "liti":
        return [1 - weights[0], weights[0]]
    if method == "soup":
        return [0.0, *[1 / number] * number]
    if method == "ema":
        (decay,) = weights
        return [0.0, decay ** (number - 1), *((1 - decay) * decay ** (number - 1 - i) for i in range(1, number))]
    return [0.0, *weights]


def _arc(weight: float, changes: Sequence[Factors | None]) -> list[float]:
    """The coefficients of SLERP; see :func:`cfg_distill.merging.slerp`."""
    line = [0.0, 1 - weight, weight]
    if weight in (0, 1):
        return line

    def product(i: int, j: int) -> float:
        one, other = changes[i], changes[j]
        return 0.0 if one is None or other is None else inner(one, other)

    def of_deltas(i: int, j: int) -> float:
        return product(i, j) - product(i, 0) - product(0, j) + product(0, 0)

    norms = math.sqrt(max(of_deltas(1, 1), 0.0) * max(of_deltas(2, 2), 0.0))
    cosine = min(1.0, max(-1.0, of_deltas(1, 2) / norms)) if norms > 0 else 1.0
    angle = math.acos(cosine)
    if math.sin(angle) < SMALL_SINE:
        return line
    first, second = (math.sin(share * angle) / math.sin(angle) for share in (1 - weight, weight))
    return [1 - first - second, first, second]


# Folders


def merge_adapter_folders(
    models: Sequence[str | Path],
    weights: Sequence[float],
    method: str,
    out: str | Path,
    start: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Merge adapter folders of one base into a new one; arguments as :func:`cfg_distill.merging.merge_folders`.

    Args:
        start: for ``slerp`` and ``liti``: the base, an adapter of it that all others were trained from, or None for the base.

    Raises:
        ConfigError: all that is wrong with the request; then all that is wrong with the folders; nothing is written.
    """
    out = Path(out).expanduser()
    needs_start = method in METHODS and METHODS[method].start
    found = problems_of_merge(method, len(models), weights, start is not None or needs_start)
    found += problems_of_out(out, models, start, overwrite)
    found += _problems_of_kinds(models)
    sources: list[AdapterFolder] = []
    with_start = start is not None and is_adapter(start)
    for key, path in ([("start", start)] if with_start and start is not None else []) + [("models", m) for m in models]:
        if is_adapter(path):
            try:
                sources.append(AdapterFolder(path, key))
            except ConfigError as error:
                found += error.problems
    if not found:
        found = _problems_of_bases(sources, None if with_start else start)
        shapes = [{name: shape[1:] for name, shape in source.shapes.items()} for source in sources]
        found += _problems_of_shapes(shapes, [f"`{source.path}`" for source in sources])
    if found:
        raise ConfigError(found)

    places = list(sources) if with_start else [None, *sources]
    used: dict[str, list[tuple[float, AdapterFolder]]] = {}
    all_holders: dict[str, list[AdapterFolder | None]] = {}
    for layer in sorted({name for source in sources for name in source.shapes}):
        holders = [source if source is not None and layer in source.shapes else None for source in places]
        all_holders[layer] = holders
        # Only the arc looks at values, a layer at a time.
        if method == "slerp":
            shares = _arc(weights[-1], [None if source is None else source.factors(layer) for source in holders])
        else:
            shares = _shares(method, weights, len(models))
        terms = [(share, source) for share, source in zip(shares, holders, strict=True) if source is not None and share]
        if terms:
            used[layer] = terms
    used = used or _zero(all_holders)

    @lru_cache(maxsize=1)
    def merged(layer: str) -> Factors:
        return concatenated([(share, source.factors(layer)) for share, source in used[layer]])

    with staged(out) as partial:
        carry(sources[-len(models)].folder, partial)
        _write(partial, used, merged)
        table = provenance(method, weights, sources, with_start=with_start)
        table["start"] = table["start"] or (sources[0].base if needs_start else None)
        (partial / PROVENANCE).write_text(json.dumps(table, indent=2) + "\n")
    return out


def _write(folder: Path, used: Mapping[str, list[tuple[float, AdapterFolder]]], merged: Any) -> None:
    """The two files of an adapter folder, a layer in memory at a time."""
    ranks, scales, shapes, dtypes, layer_of = {}, {}, {}, {}, {}
    for layer, terms in used.items():
        ranks[layer] = sum(source.shapes[layer][0] for _, source in terms)
        scales[layer] = 1.0 if len(terms) > 1 else terms[0][1].scale(layer)
        dtype = terms[0][1].dtype
        for _, source in terms:
            dtype = torch.promote_types(dtype, source.dtype)
        _, inputs, outputs = terms[0][1].shapes[layer]
        like = Factors(
            torch.empty(ranks[layer], inputs, device="meta"), torch.empty(outputs, ranks[layer], device="meta"), 1
        )
        for name, empty in tensors_of(layer, like).items():
            shapes[name], dtypes[name], layer_of[name] = tuple(empty.shape), dtype, layer

    def tensor(name: str) -> Tensor:
        return tensors_of(layer_of[name], merged(layer_of[name]))[name]

    write_file(folder / ADAPTER_WEIGHTS, list(shapes), shapes, dtypes, tensor)
    sources = list(dict.fromkeys(source for terms in used.values() for _, source in terms))
    first = sources[0].config
    kept = {name: first[name] for name in ("task_type", "fan_in_fan_out", "revision") if first.get(name) is not None}
    write_config(folder, config_of(ranks, scales, _targets(sources, used), sources[0].base, **kept))


def _targets(sources: Sequence[AdapterFolder], layers: Mapping[str, Any]) -> list[str]:
    """How peft selects the layers of the result: as it did for the models where they say it by names, else one by one."""
    selects = [source.config.get("target_modules") for source in sources]
    narrowed = any(source.config.get(key) for source in sources for key in ("exclude_modules", "layers_to_transform"))
    if narrowed or not all(isinstance(names, list) for names in selects):
        return list(layers)
    return sorted({name for names in selects for name in names or []})


def _problems_of_kinds(models: Sequence[str | Path]) -> list[str]:
    whole = [f"`{model}`" for model in models if not is_adapter(model)]
    adapters = [f"`{model}`" for model in models if is_adapter(model)]
    if not whole:
        return []
    return [
        f"Key `models`: expected adapters of one base, or whole models, but {', '.join(adapters)} are adapters and"
        f" {', '.join(whole)} are none. Export the adapters with --merged, and merge whole models."
    ]


def _problems_of_bases(sources: Sequence[AdapterFolder], start: str | Path | None) -> list[str]:
    bases = {source.path: source.base for source in sources}
    if not _all_one(bases.values()):
        what = "; ".join(f"that of `{path}` is `{base}`" for path, base in bases.items())
        return [f"Key `models`: expected adapters of one base, but {what}. Only models of one start can be merged."]
    if start is not None and not _all_one([str(start), sources[0].base]):
        return [
            f"Key `start`: expected the base of the adapters, `{sources[0].base}`, or an adapter of it, but got `{start}`."
            " Leave it out: it is the base then."
        ]
    return []


def _all_one(bases: Iterable[str]) -> bool:
    """Whether bases are the same model: by name, or by their weights when their places differ."""
    names = {whole_path(base) for base in bases}
    return len(names) == 1 or len({_identity(name) for name in names}) == 1


def _identity(base: str) -> str:
    try:
        weights = FolderWeights(base)
    except ConfigError:  # not here, or not in safetensors: its name must do
        return base
    return " ".join(sorted(sha256(file) for file in weights.files))


def _problems_of_shapes(models: Sequence[Mapping[str, tuple[int, ...]]], labels: Sequence[str]) -> list[str]:
    seen: dict[str, tuple[tuple[int, ...], str]] = {}
    wrong = []
    for shapes, label in zip(models, labels, strict=True):
        for layer, shape in shapes.items():
            known, other = seen.setdefault(layer, (shape, label))
            if known != shape:
                wrong.append(f"{layer} ({list(known)} in {other}, {list(shape)} in {label})")
    return [f"Shapes of layers differ: {listed(wrong)}. Only adapters of one base can be merged."] if wrong else []
