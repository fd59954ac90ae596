"""LoRA adapters as numbers: the low-rank change of each linear layer, read from folders in peft's format.

Shapes: R rank, I inputs, O outputs of a layer. Neither peft nor the base is needed to read, mix or write an adapter.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from cfg_distill.errors import ConfigError
from cfg_distill.files import expanded, write_json
from cfg_distill.folders.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from cfg_distill.folders.weights import open_weights

PREFIX = "base_model.model."
"""peft's own, before the name of every layer."""
_OTHERWISE = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "use_qalora",
)
"""Settings under which a layer is not its weight plus ``scale * B A``."""
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of peft that change the weight of the base: the layer is this other weight plus ``scale * B A``."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in safetensors."""
_FLOATS = {name: dtype for name, dtype in DTYPES.items() if dtype.is_floating_point}


class Factors(NamedTuple):
    r"""The change of one linear layer, :math:`\Delta W = s\, B A`.

    Attributes:
        a_RI: A.
        b_OR: B.
        scale: s, which is alpha / rank.
    """

    a_RI: Tensor
    b_OR: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a_RI)

    @property
    def delta_shape(self) -> tuple[int, int]:
        return len(self.b_OR), self.a_RI.shape[1]

    def times(self, share: float) -> Factors:
        """The change times a number; the factors stay."""
        return self._replace(scale=share * self.scale)

    def of_rank(self, rank: int) -> Factors:
        """The same change with zeros up to a higher rank, and scale 1."""
        more = rank - self.rank
        wide = torch.promote_types(self.b_OR.dtype, torch.float32)
        b_OR = (self.b_OR.to(wide) * self.scale).to(self.b_OR.dtype)
        return Factors(pad(self.a_RI, (0, 0, 0, more)), pad(b_OR, (0, more)), 1.0)

    def delta_OI(self) -> Tensor:
        """The change itself, in float32 or wider."""
        wide = torch.promote_types(self.a_RI.dtype, torch.float32)
        return self.scale * (self.b_OR.to(wide) @ self.a_RI.to(wide))


Adapter = dict[str, Factors]
"""Layer -> its change."""


def concatenated(terms: Sequence[tuple[float, Factors]]) -> Factors:
    """The sum of changes, each times its coefficient, as one change of the sum of their ranks.

    Computed in float32 or wider, returned in the widest dtype. A single change keeps its scale and, at coefficient 1, its
    bits.
    """
    (first, only), *others = terms
    if not others and first == 1:
        return only
    dtype = reduce(torch.promote_types, (each.dtype for _, factors in terms for each in (factors.a_RI, factors.b_OR)))
    wide = torch.promote_types(dtype, torch.float32)
    scale = 1.0 if others else only.scale
    a_RI = torch.cat([factors.a_RI.to(wide) for _, factors in terms])
    b_OR = torch.cat([factors.b_OR.to(wide) * (share * factors.scale / scale) for share, factors in terms], dim=1)
    return Factors(a_RI.to(dtype), b_OR.to(dtype), scale)


def difference(one: Adapter, other: Adapter) -> Adapter:
    """The change that turns the second adapter into the first: layer by layer, of the sum of their ranks.

    Example:
        >>> one, other = (Factors(torch.eye(2)[:1], torch.ones(2, 1), scale) for scale in (3.0, 1.0))
        >>> difference({"x": one}, {"x": other})["x"].delta_OI()
        tensor([[2., 0.],
                [2., 0.]])
    """
    return {
        layer: concatenated([(share, each[layer]) for share, each in ((1.0, one), (-1.0, other)) if layer in each])
        for layer in sorted(one.keys() | other.keys())
    }


class AdapterFolder:
    """An adapter folder, opened lazily: names and shapes at once, values when asked.

    Args:
        path: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Attributes:
        config: what ``adapter_config.json`` says.
        base: the folder or hub name of the base.
        shapes: layer -> R, I, O.
        dtype: the widest of all tensors, in which the values are read.

    Raises:
        ConfigError: a file is missing or broken, or the adapter is more than a low-rank change of linear layers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.folder = expanded(self.path)
        self.config = adapter_config(path)
        if wrong := [*_wrong_settings(self.config)]:
            where = f"in the {ADAPTER_CONFIG} of `{self.path}`. Correct it, or export the adapter again."
            raise ConfigError([f"{said} {where}" for said in wrong])
        self.base: str = self.config["base_model_name_or_path"]
        self.file = self.folder / ADAPTER_WEIGHTS
        self.files = [self.file]
        if not self.file.is_file():
            raise ConfigError(f"expected {ADAPTER_WEIGHTS} in `{self.path}`, but it is not there.")
        self._tensors = open_weights(self.file)
        self.shapes = self._shapes()
        kinds = {self._tensors.get_slice(name).get_dtype() for name in self._tensors.keys()}  # noqa: SIM118 - no mapping
        self.dtype: torch.dtype = reduce(torch.promote_types, (_FLOATS[kind] for kind in kinds))

    def factors(self, layer: str) -> Factors:
        """The values of one layer."""
        a_RI, b_OR = (self._tensors.get_tensor(name).to(self.dtype) for name in _names(layer))
        return Factors(a_RI, b_OR, self.scale(layer))

    def adapter(self) -> Adapter:
        """The values of all layers."""
        return {layer: self.factors(layer) for layer in self.shapes}

    def scale(self, layer: str) -> float:
        """alpha / R. peft's patterns may set another alpha for a layer."""
        rank = self.shapes[layer][0]
        alphas = self.config.get("alpha_pattern") or {}
        own = next((alpha for pattern, alpha in alphas.items() if re.match(rf"(.*\.)?({pattern})$", layer)), None)
        alpha = self.config.get("lora_alpha", 8) if own is None else own
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _shapes(self) -> dict[str, tuple[int, int, int]]:
        kind = self.config.get("peft_type", "LORA")
        settings = [name for name in _OTHERWISE if self.config.get(name)]
        begun = self.config.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(_CHANGE_BASE):
            settings.append(f"init_lora_weights {begun}, which changes the base")
        if kind != "LORA" or settings or self.config.get("bias", "none") != "none":
            what = f"peft_type {kind}" if kind != "LORA" else ", ".join(settings) or f"bias {self.config['bias']}"
            text = (
                f"expected plain LoRA of linear layers in `{self.path}`, but its {ADAPTER_CONFIG} sets {what}. Merge it into"
                " its base with peft, and use whole models."
            )
            raise ConfigError(text)
        names = list(self._tensors.keys())
        dtypes = {name: self._tensors.get_slice(name).get_dtype() for name in names}
        if others := [f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype not in _FLOATS]:
            text = f"expected tensors of {', '.join(_FLOATS)} in `{self.path}`, but found {', '.join(others[:5])}."
            raise ConfigError(f"{text} Export it again.")
        sizes = {name: tuple(self._tensors.get_slice(name).get_shape()) for name in names}
        layers = [match[1] for name in names if (match := re.fullmatch(rf"{PREFIX}(.+)\.lora_A\.weight", name))]
        pairs = {name for layer in layers for name in _names(layer)}
        strange = sorted(pairs ^ set(names)) + [name for name in sorted(pairs & set(names)) if len(sizes[name]) != 2]
        if not strange:
            strange = [
                f"{layer} of rank {rank} in lora_A and {other} in lora_B"
                for layer in layers
                for (rank, _), (_, other) in [[sizes[name] for name in _names(layer)]]
                if rank != other or not rank
            ]
        if strange or not names:
            what = f"but found {', '.join(strange[:5])}" if names else "but there is none"
            text = (
                f"expected lora_A and lora_B of linear layers in `{self.path}`, {what}. Merge it into its base with peft, and"
                " use whole models."
            )
            raise ConfigError(text)
        return {layer: (*sizes[_names(layer)[0]], sizes[_names(layer)[1]][0]) for layer in layers}


def _wrong_settings(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the numbers and names of an ``adapter_config.json``. An alpha may be 0 or below, a rank may not."""
    for key, wanted, least in (("alpha_pattern", "a number", -math.inf), ("rank_pattern", "a number above 0", 0.0)):
        table = config.get(key) or {}
        if not isinstance(table, dict):
            yield f"expected names of layers with a number each as {key}, but found {table!r}"
            continue
        for name, value in table.items():
            try:
                re.compile(f"({name})$")
            except re.error as error:
                yield f"expected patterns of names in {key}, but `{name}` is none ({error})"
            if not _is_number(value, least):
                yield f"expected {wanted} for `{name}` in {key}, but found {value!r}"
    for key, wanted, least in (("lora_alpha", "a number", -math.inf), ("r", "a number above 0", 0.0)):
        if not _is_number(config.get(key, 8), least):
            yield f"expected {wanted} as {key}, but found {config[key]!r}"
    names = config.get("target_modules")
    if isinstance(names, list) and not all(isinstance(name, str) for name in names):
        yield f"expected names of layers as target_modules, but found {names!r}"


def _is_number(value: Any, least: float) -> bool:
    return type(value) in (int, float) and least < value < math.inf


def _names(layer: str) -> tuple[str, str]:
    return f"{PREFIX}{layer}.lora_A.weight", f"{PREFIX}{layer}.lora_B.weight"


def tensors_of(layer: str, factors: Factors) -> dict[str, Tensor]:
    """The two tensors of a layer by their names in an adapter folder."""
    return dict(zip(_names(layer), (factors.a_RI, factors.b_OR), strict=True))


def config_of(
    ranks: Mapping[str, int], scales: Mapping[str, float], targets: list[str], base: str, **settings: Any
) -> dict[str, Any]:
    """An ``adapter_config.json`` that peft, transformers and inference engines read.

    The rank and alpha of most layers stand for all; the others are named in peft's patterns.

    Args:
        ranks: layer -> R.
        scales: layer -> s.
        targets: the layers as peft selects them: names, or their ends.
        base: the folder or hub name of the base.
        settings: further keys, such as ``task_type``.
    """
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alphas = {layer: scales[layer] * ranks[layer] for layer in ranks}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": {layer: own for layer, own in ranks.items() if own != rank},
        "alpha_pattern": {layer: _plain(own) for layer, own in alphas.items() if own != alpha},
        "target_modules": sorted(targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    } | settings


def _plain(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else alpha


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``adapter_config.json``."""
    write_json(folder / ADAPTER_CONFIG, config)
