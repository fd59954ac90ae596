"""The generator of a finished model, by what its folder says of itself; and where it runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedConfig

from cfg_distill.errors import ConfigError
from cfg_distill.folders import base_of, resolve, source
from cfg_distill.generators.base import Generator

KINDS = {
    "dia": "cfg_distill.generators.dia.Dia",
    "musicgen": "cfg_distill.generators.musicgen.MusicGen",
    "musicgen_melody": "cfg_distill.generators.musicgen.MusicGen",
}
"""``model_type`` of a config -> the generator; any other is a causal language model."""
_LANGUAGE = "cfg_distill.generators.causal_lm.CausalLM"


def open_generator(path: str, **settings: Any) -> Generator:
    """A generator over a model folder, an adapter folder or a hub name. Nothing is loaded.

    A path that says nothing of itself becomes a :class:`CausalLM`, whose ``problems()`` say why.

    Args:
        path: where the model is.
        settings: further arguments of its generator.
    """
    module, _, name = KINDS.get(model_type(path), _LANGUAGE).rpartition(".")
    return getattr(import_module(module), name)(path, **settings)


def device() -> torch.device:
    """The accelerator when there is one that can sample: Apple's MPS lacks the float64 of it."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None or found.type == "mps" else found


def model_type(path: str) -> str:
    """What the config of a model, or of an adapter's base, calls itself; empty when there is none."""
    try:
        base = base_of(path)
        found = source(base)
        if found is not None and found.suffix == ".gguf":
            return ""  # a language model, and converting it is not ours here
        return PreTrainedConfig.get_config_dict(resolve(base))[0].get("model_type", "")
    except (ConfigError, OSError, ValueError):
        return ""
