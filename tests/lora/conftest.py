"""Tiny adapters as peft itself writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM

Make = Callable[..., str]


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: str) -> Make:
    """Writes an adapter of the tiny model by peft alone, with random factors."""

    def make(name: str, seed: int = 0, base: str = tiny_model, **settings: Any) -> str:
        torch.manual_seed(seed)
        config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]} | settings
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(**config, init_lora_weights=False)
        )
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "README.md").unlink(missing_ok=True)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make
