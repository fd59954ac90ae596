"""docs/lora.md: its commands and its code run, its table is remade, and every way to set the merge weight gives one model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fenced import ROOT, SHORT_FIT, blocks
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cfg_distill.cli import main
from cfg_distill.generators.lora import linear_layers

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
PAGE = "docs/lora.md"
SHORT = {
    "fit": [*SHORT_FIT, "--model.optimizer.init_args.lr=0.02"],
    "generate": ["--max-new-tokens=24"],
    "evaluate": ["--samples=2", "--max-new-tokens=8"],
}
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                     "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "Llama-3.2-1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                     "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "Llama-3.2-3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
                     "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
    "Llama-3.1-8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                     "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


@pytest.mark.slow
def test_the_page_runs_and_its_knobs_agree(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shells = [block for block in blocks(PAGE) if block.language == "sh"]
    for command in (words for block in shells for words in block.commands()):
        assert main([*command[1:], *SHORT.get(command[1], [])]) == 0, command
    said = capsys.readouterr().out
    assert "an adapter of rank 32" in said and "merged into its base" in said
    assert (desk / "students" / "quality" / "model.safetensors").is_file()

    place: dict[str, Any] = {}
    first, second = [block.text for block in blocks(PAGE) if block.language == "python"]
    exec(compile(first, PAGE, "exec"), place)
    model = place["model"].eval()
    tokens = torch.arange(5, 25)[None].repeat(3, 1)
    with torch.no_grad():
        place["weigh"](1, 0)
        quality = model(tokens).logits
        place["weigh"](0.5, 0.5)
        half = model(tokens).logits
        exec(compile(second, PAGE, "exec"), place)
        mixed = model(tokens, adapter_names=["quality", "50%", "diversity"]).logits
        base = json.loads((desk / "adapters/half/adapter_config.json").read_text())["base_model_name_or_path"]
        merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "adapters/half").eval()
        torch.testing.assert_close(merged(tokens).logits, half, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed[0], quality[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed[1], half[1], atol=1e-4, rtol=1e-4)
    assert (quality - half).abs().max() > 1e-3 and (mixed[2] - half[2]).abs().max() > 1e-3


def test_the_table_of_memory_is_what_it_says() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w.-]+) \| ([\d.]+) ([MB]) \| ([\d.]+) M \| ([\d.]+) GiB \| ([\d.]+) GiB \| ([\d.]+) GiB \|$",
                      page, re.MULTILINE)  # fmt: skip
    assert [row[0] for row in rows] == list(SHAPES)
    for name, weights, unit, numbers, *memory in rows:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[name]))
        total = sum(parameter.numel() for parameter in model.parameters())
        adapter = sum(16 * (layer.in_features + layer.out_features) for layer in linear_layers(model).values())  # type: ignore[operator]
        shown = f"{total / 1e6:.1f}" if unit == "M" else f"{total / 1e9:.2f}"
        assert (weights, numbers) == (shown, f"{adapter / 1e6:.1f}"), name
        bytes_of = (20 * total, 4 * total + 16 * adapter, 2 * total + 16 * adapter)
        assert memory == [f"{size / 2**30:.1f}" for size in bytes_of], name
