"""The generator of a finished model, by the ``model_type`` in its config; its arguments, and the device that it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from transformers import PreTrainedConfig

from cfg_distill.errors import ConfigError
from cfg_distill.folders import ask_hub, base_of, resolve, source
from cfg_distill.folders.profile import generator_named
from cfg_distill.generators.base import Generator
from cfg_distill.generators.causal_lm import CausalLM
from cfg_distill.generators.csm import CSM
from cfg_distill.generators.dia import Dia
from cfg_distill.generators.musicgen import MusicGen
from cfg_distill.generators.songs import AceStep, YuE

GENERATORS: dict[str, Any] = {"csm": CSM, "dia": Dia, "musicgen": MusicGen, "musicgen_melody": MusicGen}
"""``model_type`` of a config -> the generator; any other type is a causal language model."""

NAMED: dict[str, Any] = {"AceStep": AceStep, "YuE": YuE}
"""The generators that no ``model_type`` tells, by the key ``generator`` of a folder's ``cfg_distill.json``."""

HUB: dict[str, Any] = {"ACE-Step/acestep-5Hz-lm-": AceStep, "m-a-p/YuE-s1-": YuE}
"""The same, by the beginnings of hub names."""


def open_generator(path: str, dial: float | None = None, **settings: Any) -> Generator:
    """A generator over a model folder, an adapter folder or a hub name. No weights are loaded.

    A path without a readable config becomes a :class:`CausalLM`, whose ``problems()`` report why.

    Args:
        path: the folder or hub name.
        dial: what the change of an adapter folder is multiplied by; None for all of it.
        settings: further arguments of the generator.
    """
    generator: Generator = (_named(path) or GENERATORS.get(model_type(path), CausalLM))(path, **settings)
    generator.dial = 1.0 if dial is None else dial
    return generator


def _named(path: str) -> Any:
    """The generator that the folder or the hub name tells; None where neither does."""
    try:
        name, base = generator_named(path), base_of(path)
    except ConfigError:
        return None
    if name and name not in NAMED:
        text = (
            f"Model `{path}`: expected one of {', '.join(NAMED)} as `generator` in cfg_distill.json, but got {name!r}."
        )
        raise ConfigError(f"{text} Remove the key, or update cfg-distill.")
    return NAMED[name] if name else next((kind for start, kind in HUB.items() if base.startswith(start)), None)


def device() -> torch.device:
    """The accelerator, when there is one that can sample (Apple's MPS cannot: it lacks float64); else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None or found.type == "mps" else found


def model_type(path: str) -> str:
    """The ``model_type`` in the config of a model, or of an adapter's base; empty when there is none."""
    try:
        base = base_of(path)
        found = source(base)
        if found is not None and found.suffix == ".gguf":
            return ""  # a GGUF file is always a causal LM; do not convert it just to read model_type
        ask_hub(resolve(base))
        config: Any = PreTrainedConfig.get_config_dict(resolve(base))[0]
        return str(config.get("model_type", "")) if isinstance(config, dict) else ""
    except (ConfigError, OSError, ValueError, RecursionError, AttributeError):  # transformers expects keys and values
        return ""


def arguments_of(kind: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a generator from plain ones: a dict becomes the dataclass that the type hint names.

    Raises:
        TypeError: other settings than the dataclass has, or a value of another type than the hint of a simple argument.
    """
    made = dict(plain)
    for name, hint in get_type_hints(kind.__init__).items():  # type: ignore[misc]
        settings = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
        if isinstance(settings, type) and isinstance(made.get(name), dict):
            made[name] = settings(**made[name])
        if name in made and not _may_be(hint, made[name]):
            raise TypeError(f"{name} is {made[name]!r}")
    return made


def _may_be(hint: Any, value: Any) -> bool:
    """Whether a value is of a type hint. Only plain types and fixed choices are compared."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option):
                return True
        elif option not in (str, int, float, bool, NoneType) or isinstance(value, option):
            return True
    return False
