"""Networks of model folders. Every weight comes from the files, or the model is refused: none is made up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from cfg_distill.errors import ConfigError, Problem, listed, nearest
from cfg_distill.folders import base_of, expanded, from_hub, is_adapter, model_type_of, open_weights, resolve
from cfg_distill.folders.numbers import not_numbers
from cfg_distill.generators.lora import add_adapter, read_adapter

_LISTED = 6
_KNOWN = "gpt2, llama, mistral, qwen2, qwen3"
"""Examples of a ``model_type`` where there are too many to list."""
_weightless = ContextVar("weightless", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Until the context ends, networks are made of their config alone, and their weights are whatever torch makes there."""
    token = _weightless.set(True)
    try:
        yield
    finally:
        _weightless.reset(token)


def causal_types() -> Collection[str]:
    """Every ``model_type`` of which transformers makes a causal language model, and those that a program has registered."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | (CONFIG_MAPPING.keys() - CONFIG_MAPPING_NAMES.keys())


def problems_of_type(path: str, kind: str, types: Collection[str]) -> list[Problem]:
    """Why the config of a model folder, or of an adapter's base, is of another kind; a hub name passes.

    Args:
        path: a folder in which :func:`cfg_distill.folders.problems_of_folder` finds nothing.
        kind: in words, such as ``a Dia``.
        types: each ``model_type`` of that kind.
    """
    own = model_type_of(path)
    return [] if own is None or own in types else [wrong_type(base_of(path), kind, types, own)]


def wrong_type(path: str, kind: str, types: Collection[str], own: Any) -> Problem:
    """The problem of a model of another ``model_type``, or without one. Arguments: see :func:`problems_of_type`."""
    known = " or ".join(types)
    if len(types) > _LISTED:
        known = f"{_KNOWN} or another of the {len(types)} that transformers {transformers.__version__} knows"
    is_of = f"is of model_type {own} by" if own else "has no model_type in"
    text = f"expected {kind} (model_type {known}), but `{path}` {is_of} its config.json.{nearest(str(own), types)}"
    return Problem("", f"{text} Correct it, name {kind}, or use another generator.")


def has_weights() -> bool:
    """Whether networks that are loaded have values: not those of a plan."""
    return not _weightless.get()


def network_of(loader: Any, path: str, kind: str, **settings: Any) -> Any:
    """Load a network by a class of transformers, and refuse one whose files do not hold it.

    transformers draws a weight at random where the files lack it, leaves out what the config does not ask for, and casts
    integers. All of that is wrong here. A tied weight may be absent, since it stands under its other name.

    Args:
        loader: the class, ``AutoModelForCausalLM`` for one.
        path: the folder or hub name.
        kind: the kind of model that is expected there, for the message.
        settings: further arguments of ``from_pretrained``.

    Raises:
        ConfigError: transformers cannot load it; tensors are missing, unexpected or of another shape; weights are NaN,
            infinite or integers. Each is named.
    """
    if _weightless.get():
        config = from_hub(AutoConfig, path, kind)
        return (loader.from_config if loader.__name__.startswith("Auto") else loader._from_config)(config, **settings)
    dtypes = _dtypes_in(path)
    with _without_its_report():
        network, report = from_hub(
            loader, path, kind, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    if found := [*_differences(report), *_of_integers(dtypes, network)]:
        raise ConfigError(
            f"Model `{path}`: expected the weights that its config.json describes, but {'; '.join(found)}. Weights are never"
            " made up. Copy the model again, or mend its config.json."
        )
    if broken := not_numbers(network.named_parameters()):
        raise ConfigError(
            f"Model `{path}`: expected numbers, but these weights hold NaN or infinity: {listed(broken, _LISTED)}. The"
            " model diverged, or its file is damaged. Take an earlier checkpoint of it, or copy it again."
        )
    return network


def adapted_network(loader: Any, path: str, kind: str, dtype: torch.dtype, dial: float) -> Any:
    """:func:`network_of` a folder; of an adapter folder its base, with ``dial`` times the change of the adapter added."""
    network = network_of(loader, base_of(path), kind, dtype=dtype)
    if is_adapter(path):
        add_adapter(network, read_adapter(path, dial=dial), path)
    return network


def check_fit(model: nn.Module, state: Mapping[str, Tensor], folder: str, path: str) -> None:
    """Refuse a state dict whose names or shapes are not a model's.

    Args:
        model: the network.
        state: the state dict.
        folder: where the state dict comes from, for the message.
        path: where the network comes from, for the message.

    Raises:
        ConfigError: names or shapes differ.
    """
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [f"{name} {list(state[name].shape)} vs {list(own[name].shape)}" for name in own.keys() & state.keys()
              if state[name].shape != own[name].shape]  # fmt: skip
    if wrong:
        raise ConfigError(f"Weights of `{folder}` do not fit the model `{path}`: {'; '.join(wrong[:8])}.")


def _differences(report: Mapping[str, Iterable[Any]]) -> list[str]:
    """What transformers' report says of tensors, in words."""
    found = []
    if missing := sorted(report["missing_keys"]):
        found.append(f"the files lack {listed(missing, _LISTED)}")
    if unexpected := sorted(report["unexpected_keys"]):
        found.append(f"the files hold {listed(unexpected, _LISTED)}, which no part of the model takes")
    if shapes := [f"{name} has the shape {list(own)} in place of {list(wanted)}"
                  for name, own, wanted in sorted(report["mismatched_keys"])]:  # fmt: skip
        found.append(listed(shapes, _LISTED))
    return found


def _dtypes_in(path: str) -> dict[str, str]:
    """The dtypes of the tensors in the safetensors of a folder, as the format spells them; nothing of a hub name.

    Raises:
        ConfigError: a file is cut short or damaged.
    """
    dtypes: dict[str, str] = {}
    for file in sorted(expanded(resolve(path)).glob("*.safetensors")):
        with open_weights(file) as opened:
            dtypes |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - no mapping
    return dtypes


def _of_integers(dtypes: Mapping[str, str], network: Any) -> list[str]:
    """Integers in the files where the model has real numbers. A quantised model has them on purpose."""
    if "quantization_config" in vars(network.config):
        return []
    real = {name for name, weight in network.named_parameters(remove_duplicate=False) if weight.is_floating_point()}
    found = [name for name in sorted(real & dtypes.keys()) if not dtypes[name].startswith(("F", "BF"))]
    return [f"the files hold integers as {listed(found, _LISTED)}"] if found else []


@contextmanager
def _without_its_report() -> Iterator[None]:
    """Without transformers' table of tensors that do not fit: they are told in one message."""
    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)
