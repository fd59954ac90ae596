"""A model folder whose files do not hold the model is refused by name, whoever asks for it; no weight is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_adapted, tiny_folder
from tiny_musicgen import tiny_musicgen
from torch import Tensor

from cfg_distill.checkpoints import export, spec_of
from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, LoRA, MusicGen
from cfg_distill.merging import merge_folders

NAME = "model.layers.0.mlp.up_proj.weight"
Change = Callable[[dict[str, Tensor], dict[str, Any]], Any]

FAULTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda tensors, config: tensors.pop(NAME), rf"the files lack {NAME}\."),
    "more layers": (lambda tensors, config: config.update(num_hidden_layers=9), r"the files lack model.layers.2.*more\."),
    "extra": (lambda tensors, config: tensors.update(strange=torch.ones(2)), r"the files hold strange, which no part"),
    "shape": (
        lambda tensors, config: tensors.update({NAME: torch.ones(3, 4)}),
        rf"{NAME} has the shape \[3, 4\] in place of \[32, 16\]",
    ),
    "integers": (lambda tensors, config: tensors.update({NAME: tensors[NAME].int()}), f"hold integers as {NAME}"),
    "NaN": (lambda tensors, config: tensors[NAME].view(-1)[3:4].fill_(torch.nan), f"NaN or infinity: {NAME}"),
    "infinity": (lambda tensors, config: tensors[NAME].view(-1)[3:4].fill_(torch.inf), f"NaN or infinity: {NAME}"),
    "another model": (
        lambda tensors, config: config.update(model_type="bert", architectures=["BertLMHeadModel"]),
        r"the files lack bert\.embeddings.*; the files hold lm_head\.weight",
    ),
}  # fmt: skip


def changed(folder: Path, change: Change) -> str:
    """A tiny model, with its tensors and its config changed."""
    tiny_folder(folder)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_its_files_do_not_hold_is_refused(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change, said = FAULTS[fault]
    whole, broken = tiny_folder(tmp_path / "whole"), changed(tmp_path / "broken", change)
    with pytest.raises(ConfigError, match=said) as refusal:
        CausalLM(broken).load()
    assert f"Model `{broken}`" in str(refusal.value)
    assert "LOAD REPORT" not in capsys.readouterr().err, "told once, in one message"
    with pytest.raises(ConfigError, match=said):
        CausalLM(broken, lora=LoRA(rank=2)).load()
    with pytest.raises(ConfigError, match=said):
        CausalLM(whole).load().load_weights(broken)
    if fault not in ("more layers", "another model"):  # these are no fault of a tensor: the configs differ
        with pytest.raises(ConfigError, match="strange" if fault == "extra" else NAME):
            merge_folders([whole, broken], [0.5, 0.5], "lerp", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_generate_and_export_refuse_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = tiny_folder(tmp_path / "broken")
    student = CausalLM(broken).load()
    state = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    torch.save({"state_dict": state, "generator": spec_of(student)}, tmp_path / "last.ckpt")
    changed(tmp_path / "broken", FAULTS["missing"][0])
    assert main(["generate", "--model", broken, "--prompt", "w1", "--samples", "1", "--max-new-tokens", "2"]) == 2
    assert f"the files lack {NAME}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"the files lack {NAME}"):
        export(tmp_path / "last.ckpt", tmp_path / "out")
    tiny_folder(tmp_path / "broken")
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[:-50])
    with pytest.raises(ConfigError, match=r"Take another checkpoint of the run"):
        export(tmp_path / "last.ckpt", tmp_path / "out")
    (tmp_path / "last.ckpt.before").write_bytes(whole)
    with pytest.raises(ConfigError, match=r"Take the one before it: `.*last\.ckpt\.before`"):
        export(tmp_path / "last.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "last.ckpt.before", tmp_path / "out")


@pytest.mark.parametrize("stored", ["one", "both"])
def test_tied_weights_may_be_absent(stored: str, tmp_path: Path) -> None:
    def tie(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = True
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if stored == "one":
            del tensors["lm_head.weight"]

    model = CausalLM(changed(tmp_path / "tied", tie)).load().model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_bias_of_minus_infinity_is_no_fault(tmp_path: Path) -> None:
    def forbid(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["attention_bias"] = True
        for name in [name for name in tensors if "self_attn" in name]:
            tensors[name.replace("weight", "bias")] = torch.zeros(len(tensors[name]))
        tensors["model.layers.0.self_attn.o_proj.bias"][0] = -torch.inf

    CausalLM(changed(tmp_path / "forbids", forbid)).load()


def test_a_musicgen_lacks_a_part(tmp_path: Path) -> None:
    folder = Path(tiny_musicgen(tmp_path / "music"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("text_encoder.") and name.endswith("wi.weight"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"the files lack {name}"):
        MusicGen(str(folder)).load()


@pytest.mark.parametrize("fault", ["NaN", "integers"])
def test_an_adapter_that_is_no_numbers_is_refused(fault: str, tmp_path: Path) -> None:
    student = tiny_adapted(tiny_folder(tmp_path / "base"))
    (tmp_path / "adapter").mkdir()
    student.save(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = f"base_model.model.{NAME.removesuffix('.weight')}.lora_B.weight"
    tensors[name] = tensors[name].int() if fault == "integers" else torch.full_like(tensors[name], torch.nan)
    save_file(tensors, file)
    for attempt in (CausalLM(str(tmp_path / "adapter")).load, lambda: student.load_weights(str(tmp_path / "adapter"))):
        with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj"):
            attempt()
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj"):
        merge_folders([tmp_path / "adapter"] * 2, [0.5, 0.5], "lerp", tmp_path / "merged")


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    file = Path(tiny_folder(tmp_path / "short")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"short/model\.safetensors` cannot be read as safetensors: .*Copy it again"):
        CausalLM(str(tmp_path / "short")).load()


def test_code_in_a_model_folder_is_neither_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    ran = tmp_path / "ran"
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        folder = Path(tiny_folder(tmp_path / name.partition(".")[0]))
        (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: ...\n")
        content = json.loads((folder / name).read_text())
        own = "mine.Mine" if key == "AutoConfig" else ["mine.Mine", None]
        changes = {"model_type": "mine"} if key == "AutoConfig" else {"tokenizer_class": "Mine"}
        (folder / name).write_text(json.dumps(content | changes | {"auto_map": {key: own}}))
        generator = CausalLM(str(folder))
        with pytest.raises(ConfigError, match="custom code"):
            _ = generator.config if key == "AutoConfig" else generator.tokenizer
    assert not asked and not ran.exists()
