"""LoRA students: a low-rank adapter on the linear layers of a frozen base, whose tensors the teacher shares.

Shapes: R rank, I inputs, O outputs of a layer.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cfg_distill.errors import ConfigError, Context, Problem, nearest, problems_of_counts, problems_of_shares
from cfg_distill.folders import ADAPTER_WEIGHTS, base_of, is_adapter, whole_path
from cfg_distill.folders.adapters import Adapter, AdapterFolder, Factors, config_of, tensors_of, write_config

NAME = "default"
"""peft's name for the one adapter of a model."""


@dataclass
class LoRA:
    r"""Train a low-rank change of some linear layers instead of all weights.

    .. math:: W' = W + \frac{\alpha}{R}\, B A, \qquad A \in \mathbb{R}^{R \times I},\ B \in \mathbb{R}^{O \times R}

    with W frozen and B zero at first. Source: Hu et al., arXiv 2106.09685. The adapter is float32 also where the base is
    in half precision. peft does the layers (``pip install ".[lora]"``).

    Args:
        rank: R.
        alpha: alpha / R scales the change.
        targets: names of linear layers, or the ends of names (``q_proj``); ``all-linear`` for all but the output head.
        dropout: of what enters the adapter while training.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: list[str] | Literal["all-linear"] = "all-linear"
    dropout: float = 0.0

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, whatever the base is."""
        found = []
        if importlib.util.find_spec("peft") is None:
            found.append(Problem("", 'LoRA needs the library peft. Install it: pip install ".[lora]"'))
        found += problems_of_counts(rank=self.rank)
        if not self.alpha > 0:
            found.append(Problem("alpha", f"expected a number above 0, but got {self.alpha}."))
        found += problems_of_shares(dropout=self.dropout)
        if self.targets != "all-linear" and (not self.targets or isinstance(self.targets, str)):
            text = f"expected names of layers or all-linear, but got {self.targets!r}."
            found.append(Problem("targets", text))
        return found

    def problems_on(self, path: str, network: Callable[[], nn.Module] | None) -> list[Problem]:
        """Why the adapter does not fit a base, found without loading weights.

        Args:
            path: the base.
            network: makes the network without weights. It is called only when the targets are names; None: do not look.
        """
        found = []
        if is_adapter(path):
            text = (
                f"expected whole weights to put an adapter on, but `{path}` is an adapter of `{base_of(path)}`."
                " Name that base as the path, and the adapter as `@/model.start`."
            )
            found.append(Problem("", text))
        if isinstance(self.targets, str) or network is None:
            return found
        known = linear_layers(network())
        ends = sorted({name.rpartition(".")[2] for name in known})
        for target in self.targets:
            if not any(_matches(target, name) for name in known):
                text = (
                    f"expected linear layers (the output head is none of them), but `{target}` matches none."
                    f"{nearest(target, ends)} There are: {', '.join(ends)}."
                )
                found.append(Problem("targets", text))
        return found

    def inject(self, model: nn.Module) -> None:
        """Freeze a model and put the adapter on its layers, in place."""
        from peft import LoraConfig, inject_adapter_in_model

        from cfg_distill.generators.adapted import use_adapted

        layers = linear_layers(model)
        chosen = [name for name in layers
                  if self.targets == "all-linear" or any(_matches(target, name) for target in self.targets)]  # fmt: skip
        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # only divided by the rank
            target_modules=chosen,
            lora_dropout=self.dropout,
            fan_in_fan_out=any(isinstance(layers[name], Conv1D) for name in chosen),
        )
        inject_adapter_in_model(settings, model, adapter_name=NAME)
        use_adapted(model)
        for layer in lora_layers(model).values():
            # peft takes the base's dtype; updates of half precision would be lost in rounding.
            layer.lora_A.float()
            layer.lora_B.float()

    def problems_of_rank(self, path: str) -> list[Problem]:
        """Why an adapter folder of the same base is too large to start from, found without loading its values."""
        try:
            rank = max(shape[0] for shape in AdapterFolder(path).shapes.values())
        except ConfigError as error:
            return error.problems
        if rank > self.rank:
            text = (
                f"expected at least {rank}, the rank of `{path}`, but got {self.rank}. Raise it; the ranks to spare begin at"
                " zero."
            )
            return [Problem("/model.generator.init_args.lora.rank", text)]
        return []


def problems_of_base(path: str, base: str) -> list[Problem]:
    """Why a folder is no adapter of a base."""
    if not is_adapter(path):
        text = (
            f"expected an adapter of `{base}`, since the student is one, but `{path}` holds whole weights."
            " Name an adapter, or train without `lora`."
        )
        return [Problem("", text)]
    if whole_path(base_of(path)) != whole_path(base):
        text = f"expected an adapter of `{base}`, but `{path}` is one of `{base_of(path)}`. Both must be of one base."
        return [Problem("", text)]
    return []


SENSES = {
    "vision_tower",
    "vision_model",
    "visual",
    "audio_tower",
    "multi_modal_projector",
    "embed_vision",
    "embed_audio",
}
"""The parts of models of transformers that read pictures and sound. A prompt here is a text, so they would learn nothing."""


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a model by name, without its output head."""
    find_head = getattr(model, "get_output_embeddings", None)  # transformers' models have it, their parts need not
    head = find_head() if find_head is not None else None
    of_head = set(head.modules()) if head is not None else set()
    return {name: module for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module not in of_head
            and not SENSES & {*name.split(".")}}  # fmt: skip


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that peft has put in, by name."""
    peft = sys.modules.get("peft.tuners.lora.layer")
    if peft is None:  # never imported, so that no layer can be of it
        return {}
    return {name: module for name, module in model.named_modules() if isinstance(module, peft.LoraLayer)}


def _matches(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


# The teacher, and the plain model


def without_adapter(model: nn.Module) -> Any:
    """The base: a second tree of modules on the SAME tensors, with the adapter left out.

    Both trees have modes and settings of their own, so that nothing has to be switched off and on.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    base = copy.deepcopy(model, shared)
    _take_out(base)
    return base


def merge_adapter(model: nn.Module) -> None:
    """Add the adapter to the weights, in place, and take it out: the model is a plain one again.

    Computed in float32, written back in the dtype of the base.
    """
    for name, factors in adapter_of(model).items():
        _add(model.get_submodule(f"{name}.base_layer"), factors)
    _take_out(model)


def add_adapter(model: nn.Module, adapter: Mapping[str, Factors], path: str) -> None:
    """Add the adapter of a folder to a plain model's weights, in place. peft is not needed.

    Raises:
        ConfigError: a layer that the model lacks, or of another shape.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    wrong = [name for name, factors in adapter.items()
             if name not in layers or _shape(layers[name]) != factors.delta_shape]  # fmt: skip
    if wrong:
        raise ConfigError(f"Adapter `{path}` does not fit its base: {'; '.join(wrong[:8])}.")
    uses = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    if tied := [name for name in adapter if uses[id(layers[name].weight)] > 1]:
        raise ConfigError(
            f"Adapter `{path}` changes {', '.join(tied)}, whose weights another layer shares, and cannot be added to them."
        )
    for name, factors in adapter.items():
        _add(layers[name], factors)


def _add(layer: Any, factors: Factors) -> None:
    with torch.no_grad():
        delta_OI = factors.delta_OI().to(layer.weight.device)
        delta = delta_OI.T if isinstance(layer, Conv1D) else delta_OI
        layer.weight.copy_(layer.weight.to(delta.dtype) + delta)


def _shape(layer: Any) -> tuple[int, ...]:
    """(outputs, inputs) of a linear layer."""
    shape = tuple(layer.weight.shape)
    return shape[::-1] if isinstance(layer, Conv1D) else shape


def _take_out(model: nn.Module) -> None:
    for name, layer in lora_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base_layer)
    vars(model).pop("peft_config", None)


# The adapter as numbers


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter that stands in a model: its own tensors, not copies."""
    return {name: Factors(layer.lora_A[NAME].weight.detach(), layer.lora_B[NAME].weight.detach(), layer.scaling[NAME])
            for name, layer in lora_layers(model).items()}  # fmt: skip


def fill(model: nn.Module, adapter: Mapping[str, Factors], path: str) -> None:
    """Make a model's adapter equal to another one. Ranks to spare, and layers without a counterpart, begin at zero.

    Raises:
        ConfigError: the other adapter has layers that this one lacks, other shapes or a larger rank.
    """
    own = adapter_of(model)
    lacking = sorted(adapter.keys() - own.keys())
    shapes = [f"{name} {list(adapter[name].delta_shape)} vs {list(own[name].delta_shape)}"
              for name in adapter.keys() & own.keys() if adapter[name].delta_shape != own[name].delta_shape]  # fmt: skip
    if lacking or shapes:
        raise ConfigError(
            f"Adapter `{path}` does not fit the adapter of the student: layers {'; '.join((lacking + shapes)[:8])}."
            " Set `@/model.generator.init_args.lora.targets` to include its layers."
        )
    if larger := [name for name in adapter if adapter[name].rank > own[name].rank]:
        rank = max(adapter[name].rank for name in larger)
        raise ConfigError(
            f"Adapter `{path}` has rank {rank}. Set `@/model.generator.init_args.lora.rank` to it, or more."
        )
    with torch.no_grad():
        for name, mine in own.items():
            mine.b_OR.zero_()
            if name in adapter:
                a_RI, b_OR, scale = adapter[name]
                # Exact when the scales are equal, or differ by a power of two.
                mine.a_RI[: len(a_RI)] = a_RI
                mine.b_OR[:, : len(a_RI)] = b_OR if scale == mine.scale else b_OR.float() * (scale / mine.scale)


@contextmanager
def adapter_scaled(model: nn.Module, scale: float) -> Iterator[None]:
    """Multiply the change of a model's adapter by a number until the context ends: W + scale s B A, with s = alpha / R."""
    layers = lora_layers(model).values()
    kept = [layer.scaling[NAME] for layer in layers]
    try:
        for layer, own in zip(layers, kept, strict=True):
            layer.scaling[NAME] = scale * own
        yield
    finally:
        for layer, own in zip(layers, kept, strict=True):
            layer.scaling[NAME] = own


@contextmanager
def standing_in(model: nn.Module, adapter: Mapping[str, Factors]) -> Iterator[None]:
    """Put another adapter of the same layers, of any rank, into a model until the context ends; then restore its own."""
    layers = lora_layers(model)
    kept = {name: (layer.lora_A[NAME], layer.lora_B[NAME], layer.scaling[NAME]) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            own_a, own_b = (part.weight for part in kept[name][:2])
            empty = Factors(torch.empty(0, own_a.shape[1]), torch.empty(own_b.shape[0], 0), 1.0)
            a_RI, b_OR, scale = adapter.get(name, empty)
            # Not like the own tensors, which may be shards: what stands in is whole on every process.
            layer.lora_A[NAME], layer.lora_B[NAME] = (
                _linear(tensor.to(own_a.device, own_a.dtype)) for tensor in (a_RI, b_OR)
            )
            layer.scaling[NAME] = scale
        yield
    finally:
        for name, layer in layers.items():
            layer.lora_A[NAME], layer.lora_B[NAME], layer.scaling[NAME] = kept[name]


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False, device="meta")  # torch warns of a layer of rank 0
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return linear


# Folders


def save_adapter(
    model: nn.Module, base: str, folder: str | Path, task_type: str | None = None, prefix: str = ""
) -> None:
    """Write a model's adapter as a folder that peft, transformers and inference engines load.

    Args:
        model: with an adapter; the whole model of transformers or a part of it.
        base: the folder, hub name or shipped name that the base was loaded from. Folders are written as whole paths.
        folder: the folder to write.
        task_type: as peft names it, so that peft's own loader makes the right class.
        prefix: the prefix of the part in the whole model: ``decoder.``; empty for the whole model.
    """
    adapter = {prefix + name: factors for name, factors in adapter_of(model).items() if factors.rank}
    folder = Path(folder)
    tensors = {name: tensor.cpu().contiguous() for layer, factors in adapter.items()
               for name, tensor in tensors_of(layer, factors).items()}  # fmt: skip
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = config_of(
        {name: factors.rank for name, factors in adapter.items()},
        {name: factors.scale for name, factors in adapter.items()},
        list(adapter) if prefix else _targets(model, list(adapter)),
        whole_path(base),
        task_type=task_type,
        fan_in_fan_out=any(isinstance(layer.base_layer, Conv1D) for layer in lora_layers(model).values()),
    )
    write_config(folder, config)


def _targets(model: nn.Module, chosen: list[str]) -> list[str]:
    """The ends of the names, where these select the same layers: short, as inference engines expect them."""
    ends = {name.rpartition(".")[2] for name in chosen}
    selected = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends) if selected == set(chosen) else chosen


def read_adapter(path: str, prefix: str = "", dial: float = 1.0) -> Adapter:
    """The adapter of a folder, for a model or, by the prefix, for a part of it.

    Args:
        path: the folder.
        prefix: of the layers of the part in the whole model.
        dial: what the change is multiplied by.

    Raises:
        ConfigError: the folder is broken, or its adapter changes other parts.
    """
    adapter = AdapterFolder(path).adapter()
    if strange := [layer for layer in adapter if not layer.startswith(prefix)]:
        raise ConfigError(f"Adapter `{path}` changes layers outside of `{prefix}`: {'; '.join(strange[:8])}.")
    if broken := [layer for layer, (a_RI, b_OR, _) in adapter.items()
                  if not (a_RI.isfinite().all() and b_OR.isfinite().all())]:  # fmt: skip
        raise ConfigError(
            f"Adapter `{path}`: expected numbers, but its factors hold NaN or infinity: {'; '.join(broken[:8])}. Take an"
            " earlier checkpoint of it, or copy it again."
        )
    return {layer.removeprefix(prefix): factors.times(dial) for layer, factors in adapter.items()}
