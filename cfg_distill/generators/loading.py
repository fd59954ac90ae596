"""The generator of a finished model, by the ``model_type`` in its config; and the device that it runs on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from cfg_distill.errors import ConfigError
from cfg_distill.folders import ask_hub, base_of, resolve, source
from cfg_distill.generators.base import Generator
from cfg_distill.generators.causal_lm import CausalLM
from cfg_distill.generators.dia import Dia
from cfg_distill.generators.musicgen import MusicGen

GENERATORS: dict[str, Any] = {"dia": Dia, "musicgen": MusicGen, "musicgen_melody": MusicGen}
"""``model_type`` of a config -> the generator; any other type is a causal language model."""


def open_generator(path: str, **settings: Any) -> Generator:
    """A generator over a model folder, an adapter folder or a hub name. No weights are loaded.

    A path without a readable config becomes a :class:`CausalLM`, whose ``problems()`` report why.

    Args:
        path: the folder or hub name.
        settings: further arguments of the generator.
    """
    return GENERATORS.get(model_type(path), CausalLM)(path, **settings)


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
