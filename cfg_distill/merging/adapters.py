r"""Merging LoRA adapters of one base, exactly, without the base.

A merge of models :math:`W_0 + \Delta_i` is :math:`W_0 + \sum_i c_i \Delta_i`, and a sum of low-rank changes is one of the
sum of the ranks: :math:`\sum_i c_i s_i B_i A_i = [c_1 s_1 B_1, c_2 s_2 B_2, \ldots]\,[A_1; A_2; \ldots]`. Averaging the factors
instead would make :math:`(\sum_i c_i B_i)(\sum_j c_j A_j)`, with products of one model's B and another's A.

Shapes: R rank, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Problem, listed
from cfg_distill.files import expanded, problems_of_out, staged_folder
from cfg_distill.folders import ADAPTER_WEIGHTS, is_adapter, sha256, whole_path
from cfg_distill.folders.adapters import (
    Adapter,
    AdapterFolder,
    Factors,
    concatenated,
    config_of,
    tensors_of,
    write_config,
)
from cfg_distill.merging.arithmetic import finite
from cfg_distill.merging.coefficients import InnerProducts, coefficients
from cfg_distill.merging.methods import METHODS, problems_of_merge
from cfg_distill.merging.outputs import carry_of_models, inputs_of, named, provenance, record
from cfg_distill.merging.safetensors_io import FolderWeights, write_file

T = TypeVar("T")


def merge_adapters(method: str, adapters: Sequence[Adapter], weights: Sequence[float] = ()) -> Adapter:
    """Merge adapters of one base by the name of a method. Base and result together are the merge of the whole models.

    The base is the start model of the methods that ask for one.

    Args:
        method: a name of :data:`METHODS`.
        adapters: the models.
        weights: as the method asks.

    Returns:
        Layer -> its change. Where several models change a layer, its rank is the sum of their ranks.

    Raises:
        ConfigError: the request does not fit the method, or shapes differ.
    """
    found = problems_of_merge(method, len(adapters), weights, _needs_start(method))
    found += _problems_of_shapes([{name: f.delta_shape for name, f in adapter.items()} for adapter in adapters],
                                 [f"model {number}" for number in range(1, len(adapters) + 1)])  # fmt: skip
    if found:
        raise ConfigError(found)
    holders = {layer: [None, *(each.get(layer) for each in adapters)] for adapter in adapters for layer in adapter}
    plan = _planned(method, weights, holders, lambda layer, factors: factors)
    return {layer: concatenated(terms) for layer, terms in plan.items()}


def _needs_start(method: str) -> bool:
    return method in METHODS and METHODS[method].start


def inner(one: Factors, other: Factors) -> float:
    r"""The inner product of two changes from their factors alone.

    .. math:: \langle s B A,\ s' B' A' \rangle = s\,s' \sum_{rr'} (B^\top B')_{rr'} (A A'^\top)_{rr'}

    In float64: the cosine of a small angle is the difference of large sums.
    """
    b_RR = one.b_OR.double().T @ other.b_OR.double()
    a_RR = one.a_RI.double() @ other.a_RI.double().T
    return one.scale * other.scale * float((b_RR * a_RR).sum())


def _planned(
    method: str,
    weights: Sequence[float],
    holders: Mapping[str, Sequence[T | None]],
    factors: Callable[[str, T], Factors],
) -> dict[str, list[tuple[float, T]]]:
    """For each layer of the result the models that have a part in it, each with its coefficient, the start model first.

    Args:
        method: of the merge.
        weights: of the merge.
        holders: layer -> the start model and the others, None for each that leaves the layer alone.
        factors: the change of a layer in a model. Only SLERP asks, a layer at a time.
    """
    plan = {}
    for layer, each in holders.items():
        products = partial(_inner_products, layer, each, factors)
        shares = coefficients(method, weights, len(each) - 1, products)
        terms = [(share, holder) for share, holder in zip(shares, each, strict=True) if holder is not None and share]
        if terms:
            plan[layer] = terms
    # Where nothing is left of any model: the base itself, as an adapter that peft reads, one change per layer times 0.
    return plan or {layer: [(0.0, next(one for one in each if one is not None))] for layer, each in holders.items()}


def _inner_products(layer: str, holders: Sequence[T | None], factors: Callable[[str, T], Factors]) -> InnerProducts:
    r"""Of the task vectors: with changes :math:`\Delta` of one base, :math:`d_a = \Delta_a - \Delta_0`."""
    changes = [None if holder is None else factors(layer, holder) for holder in holders]

    def product(i: int, j: int) -> float:
        one, other = changes[i], changes[j]
        return 0.0 if one is None or other is None else inner(one, other)

    def of_deltas(i: int, j: int) -> float:
        return product(i, j) - product(i, 0) - product(0, j) + product(0, 0)

    return InnerProducts(ab=of_deltas(1, 2), aa=of_deltas(1, 1), bb=of_deltas(2, 2))


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
    out = expanded(out)
    needs_start = _needs_start(method)
    with_start = start is not None and is_adapter(start)
    sources, broken = _opened(models, start if with_start else None)
    bases = [whole_path(str(base)) for base in (start, *(source.base for source in sources)) if base is not None]
    found = [
        *problems_of_merge(method, len(models), weights, start is not None or needs_start),
        *problems_of_out(out, [*inputs_of(sources), *bases], overwrite),
        *_problems_of_kinds(models),
        *broken,
    ]
    found = found or _problems_of_bases(sources, None if with_start else start) + _problems_of_shapes(
        [{name: shape[1:] for name, shape in source.shapes.items()} for source in sources],
        [f"`{source.path}`" for source in sources],
    )
    if found:
        raise ConfigError(found)

    places = list(sources) if with_start else [None, *sources]
    layers = sorted({name for source in sources for name in source.shapes})
    holders = {layer: [source if source and layer in source.shapes else None for source in places] for layer in layers}
    plan = _planned(method, weights, holders, _factors)

    @lru_cache(maxsize=1)
    def merged(layer: str) -> Factors:
        factors = concatenated([(share, _factors(layer, source)) for share, source in plan[layer]])
        return _finite(factors, layer)

    with staged_folder(out) as folder:
        carry_of_models(sources[-len(models) :], folder)
        _write(folder, plan, merged)
        table = provenance(method, weights, sources, with_start, sources[0].base if needs_start else None)
        record(folder, out.name, table, sources[-len(models) :], sources[0].base, start if with_start else None)
    return out


def _opened(models: Sequence[str | Path], start: str | Path | None) -> tuple[list[AdapterFolder], list[Problem]]:
    """The adapters, the start first where it is one, and why some of them cannot be read."""
    sources, found = [], []
    for key, path in named(models, start):
        if is_adapter(path):
            try:
                sources.append(AdapterFolder(path))
            except ConfigError as error:
                found += error.under(key)
    return sources, found


def _factors(layer: str, source: AdapterFolder) -> Factors:
    """The change of a layer in a folder.

    Raises:
        ConfigError: some of its values are NaN or infinite.
    """
    return _finite(source.factors(layer), layer, source.path)


def _finite(factors: Factors, layer: str, where: str = "") -> Factors:
    """The factors, if all of their values are numbers; ``where`` is the folder that has them, empty for the merge."""
    for values, which in ((factors.a_RI, "A"), (factors.b_OR, "B")):
        finite(values, f"{layer}.lora_{which}", where)
    return factors


def _write(
    folder: Path, used: Mapping[str, list[tuple[float, AdapterFolder]]], merged: Callable[[str], Factors]
) -> None:
    """Write the two files of an adapter folder. One layer is in memory at a time.

    All layers get one rank and one alpha: vLLM and llama.cpp read no patterns, and would scale a layer by the others' numbers.
    """
    ranks = {layer: sum(source.shapes[layer][0] for _, source in terms) for layer, terms in used.items()}
    scales = {layer: 1.0 if len(terms) > 1 else terms[0][1].scale(layer) for layer, terms in used.items()}
    is_uneven = len(set(ranks.values())) > 1 or len(set(scales.values())) > 1
    if is_uneven:
        ranks, scales = dict.fromkeys(used, max(ranks.values())), dict.fromkeys(used, 1.0)
    shapes, dtypes, layer_of = {}, {}, {}
    for layer, terms in used.items():
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
        layer = layer_of[name]
        factors = merged(layer).of_rank(ranks[layer]) if is_uneven else merged(layer)
        return tensors_of(layer, _finite(factors, layer))[name]

    write_file(folder / ADAPTER_WEIGHTS, list(shapes), shapes, dtypes, tensor)
    sources = list(dict.fromkeys(source for terms in used.values() for _, source in terms))
    first = sources[0].config
    kept = {name: first[name] for name in ("task_type", "fan_in_fan_out", "revision") if first.get(name) is not None}
    write_config(folder, config_of(ranks, scales, _targets(sources, used), sources[0].base, **kept))


def _targets(sources: Sequence[AdapterFolder], layers: Mapping[str, Any]) -> list[str]:
    """The names by which peft selects the layers of the result: the models' own where they are names, else every layer."""
    selects = [source.config.get("target_modules") for source in sources]
    narrowed = any(source.config.get(key) for source in sources for key in ("exclude_modules", "layers_to_transform"))
    if narrowed or not all(isinstance(names, list) for names in selects):
        return list(layers)
    return sorted({name for names in selects for name in names or []})


def _problems_of_kinds(models: Sequence[str | Path]) -> list[Problem]:
    whole = [f"`{model}`" for model in models if not is_adapter(model)]
    adapters = [f"`{model}`" for model in models if is_adapter(model)]
    if not whole:
        return []
    text = (
        f"expected adapters of one base, or whole models, but {', '.join(adapters)} are adapters and {', '.join(whole)} are"
        " none. Export the adapters with --merged, and merge whole models."
    )
    return [Problem("models", text)]


def _problems_of_bases(sources: Sequence[AdapterFolder], start: str | Path | None) -> list[Problem]:
    bases = {source.path: source.base for source in sources}
    revisions = {source.path: source.config.get("revision") or "main" for source in sources}
    if len(set(revisions.values())) > 1:
        different = "; ".join(f"that of `{path}` is `{revision}`" for path, revision in revisions.items())
        text = f"expected adapters of one revision of their base, but {different}. Export them with --merged, or name others."
        return [Problem("models", text)]
    if not _all_one(bases.values()):
        different = "; ".join(f"the base of `{path}` is `{base}`" for path, base in bases.items())
        text = f"expected adapters of one base, but {different}. Only models of one start can be merged. Name others."
        return [Problem("models", text)]
    if start is not None and not _all_one([str(start), sources[0].base]):
        text = (
            f"expected the base of the adapters, `{sources[0].base}`, or an adapter of it, but got `{start}`. Leave it out: the"
            " base is the start then."
        )
        return [Problem("start", text)]
    return []


def _all_one(bases: Iterable[str]) -> bool:
    """Whether bases are the same model: by name, or by their weights when their places differ."""
    names = {whole_path(base) for base in bases}
    return len(names) == 1 or len({_identity(name) for name in names}) == 1


def _identity(base: str) -> str:
    try:
        weights = FolderWeights(base)
    except ConfigError:  # not on this machine, or not in safetensors: compare the name
        return base
    return " ".join(sorted(sha256(file) for file in weights.files))


def _problems_of_shapes(models: Sequence[Mapping[str, tuple[int, ...]]], labels: Sequence[str]) -> list[Problem]:
    seen: dict[str, tuple[tuple[int, ...], str]] = {}
    wrong = []
    for shapes, label in zip(models, labels, strict=True):
        for layer, shape in shapes.items():
            known, other = seen.setdefault(layer, (shape, label))
            if known != shape:
                wrong.append(f"{layer} ({list(known)} in {other}, {list(shape)} in {label})")
    text = f"Shapes of layers differ: {listed(wrong)}. Only adapters of one base can be merged. Name others."
    return [Problem("", text)] if wrong else []
