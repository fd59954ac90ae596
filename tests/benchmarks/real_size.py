"""Generators at real size, with random weights where no others are installed: nothing is downloaded or written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MusicgenForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import tiny_musicgen
from measure import MODEL

from cfg_distill.folders.packages import PACKAGED
from cfg_distill.generators import CausalLM, MusicGen
from cfg_distill.generators.linear import use_products
from cfg_distill.generators.musicgen_shared import Shared
from cfg_distill.planning.known import ARCHITECTURES

FRAMES_PER_SECOND = 50


def musicgen(name: str = "small", device: str = "cpu", config: Any = None, **settings: Any) -> MusicGen:
    """MusicGen at the size of a published model.

    Args:
        name: ``small``, ``medium``, ``large``, ``stereo-small`` and so on.
        device: of the weights.
        config: in place of the published one.
        settings: of the generator.
    """
    generator = MusicGen(f"facebook/musicgen-{name}", **settings)
    generator.config = config = config or ARCHITECTURES[generator.path]()
    with torch.device(device):
        torch.manual_seed(0)
        whole: Any = MusicgenForConditionalGeneration(config)
    generator.model = whole.decoder.to(getattr(torch, generator.dtype))
    generator.text_tokenizer = tiny_musicgen.tiny_tokenizer()
    generator.shared = Shared(whole, generator.text_tokenizer, generator.path, None)
    return _finished(generator)


def has_smollm2() -> bool:
    """Whether the package that brings SmolLM2's weights is installed."""
    return PACKAGED["smollm2"].find() is not None


def smollm2(device: str = "cpu", config: Any = None, **settings: Any) -> CausalLM:
    """SmolLM2-135M: its own weights where they are installed, else random ones of the sizes of its config.json.

    No token ends a sample, so that each has its full length.

    Args:
        device: of the weights.
        config: in place of the published one.
        settings: of the generator.
    """
    if config is None and has_smollm2():
        generator = CausalLM(MODEL, **settings).load()
        generator.end_tokens = ()  # type: ignore[misc]  # of the instance
        generator.model.to(device)
        return generator.eval()
    generator = CausalLM("HuggingFaceTB/SmolLM2-135M-Instruct", **settings)
    generator.config = config or LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    generator.tokenizer = tiny.tiny_tokenizer()
    generator.end_tokens = ()  # type: ignore[misc]  # of the instance
    with torch.device(device):
        torch.manual_seed(0)
        generator.model = LlamaForCausalLM(generator.config).to(getattr(torch, generator.dtype))
    return _finished(generator)


def _finished(generator: Any) -> Any:
    """As ``load`` leaves a generator. Nobody looks for its folder, which there is not."""
    generator.problems = lambda context=None: []
    if generator.lora is not None:
        generator.lora.inject(generator.model)
    use_products(generator.model)
    return generator.eval()
