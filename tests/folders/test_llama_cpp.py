"""GGUF exports: by a converter that stands in for llama.cpp's, and the commands where there is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_adapted, tiny_folder

from cfg_distill.checkpoints import spec_of
from cfg_distill.cli import main
from cfg_distill.generators import CausalLM, Generator, LoRA

CONVERTER = """
import sys
from pathlib import Path
if "--print-supported-models" in sys.argv:
    print("INFO:hf-to-gguf:Supported models:", file=sys.stderr)
    for name in (KNOWN):
        print(f"  - {name}", file=sys.stderr)
    sys.exit()
words = sys.argv[1:]
if "broken" in words[0]:
    sys.exit("ValueError: no such tokenizer")
Path(words[words.index("--outfile") + 1]).write_text(f"GGUF {Path(__file__).name} {words[0]} {'--base' in words}")
"""


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (folder / name).write_text(CONVERTER.replace("(KNOWN)", '"LlamaForCausalLM", "Qwen3ForCausalLM"'))
    monkeypatch.setenv("LLAMA_CPP", str(folder))
    return folder


def saved(student: Generator, file: Path) -> list[str]:
    """The command that exports it."""
    state = {
        f"student.{name}": value for name, value in student.state_dict().items() if "lora" in name or not student.lora
    }
    torch.save({"state_dict": state, "generator": spec_of(student)}, file)
    return ["export", "--checkpoint", str(file), "--gguf"]


def test_the_converter_at_hand_writes_the_file(
    llama_cpp: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    words = saved(tiny_adapted(tiny_model), tmp_path / "adapter.ckpt")
    assert main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "out.gguf").read_text() == f"GGUF convert_lora_to_gguf.py {out} True"
    assert f"Wrote {tmp_path / 'out.gguf'}" in said and f"convert_hf_to_gguf.py {tiny_model} --outfile" in said
    assert f"llama-server -m {tmp_path / 'base.gguf'} --lora {tmp_path / 'out.gguf'}" in said
    assert main([*words, "--out", str(tmp_path / "whole"), "--merged"]) == 0
    assert (tmp_path / "whole.gguf").read_text().startswith("GGUF convert_hf_to_gguf.py")
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "broken")]) == 2
    err = capsys.readouterr().err
    assert f"`{tmp_path / 'broken'}` was written, but not converted" in err and "no such tokenizer" in err
    assert {each.name for each in tmp_path.glob("*.gguf*")} == {"out.gguf", "whole.gguf"}
    (tmp_path / "new.gguf").write_text("mine")
    assert main([*words, "--out", str(tmp_path / "new")]) == 2
    assert "new.gguf` exists" in capsys.readouterr().err and not (tmp_path / "new").exists()
    # What another program wrote, the base among it, is replaced in no case; what an export wrote there is, when asked.
    assert main([*words, "--out", str(tmp_path / "new"), "--overwrite"]) == 2
    assert "was not written by an export into" in capsys.readouterr().err
    assert (tmp_path / "new.gguf").read_text() == "mine"
    assert main([*words, "--out", str(out), "--overwrite"]) == 0
    (tmp_path / "out.gguf").write_text("changed since")
    assert main([*words, "--out", str(out), "--overwrite"]) == 2


def test_an_architecture_that_it_does_not_know(
    llama_cpp: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_folder(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    words = saved(CausalLM(base).load(), tmp_path / "whole.ckpt")
    many = ["LlamaForCausalLM", *(f"Odd{number}Model" for number in range(280))]
    converter = llama_cpp / "convert_hf_to_gguf.py"
    converter.write_text(CONVERTER.replace("(KNOWN)", f"{many}"))
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCasualLM"]}))
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    # Hundreds of names are no message: their number, the nearest, and the command that lists them.
    assert f"`{base}` is a LlamaForCasualLM. It knows 281, the nearest LlamaForCausalLM, " in said
    lists = f"`{sys.executable} {converter} --print-supported-models` lists all. Leave this out."
    assert lists in said and len(said) < 700 + len(lists) and not (tmp_path / "out").exists()
    converter.unlink()
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "holds no convert_hf_to_gguf.py" in capsys.readouterr().err
    monkeypatch.delenv("LLAMA_CPP")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"architectures": ["MusicgenOddities"]}))
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "is a MusicgenOddities" in capsys.readouterr().err


def test_without_a_converter_the_commands_are_printed(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = saved(tiny_adapted(tiny_model), tmp_path / "adapter.ckpt")
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    commands = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in commands] == ["python", "python", "llama-server"]
    assert commands[1].startswith(f"python convert_lora_to_gguf.py {tmp_path / 'out'} --base {tiny_model} --outfile")
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_a_difference_whose_layers_have_several_alphas(
    llama_cpp: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = saved(tiny_adapted(tiny_model), tmp_path / "adapter.ckpt")
    for name, rank in (("equal", 2), ("other", 3)):
        targets = "all-linear" if name == "equal" else ["q_proj"]
        CausalLM(tiny_model, lora=LoRA(rank=rank, targets=targets)).load().save(tmp_path / name)
    assert main([*words, "--out", str(tmp_path / "out"), "--relative-to", str(tmp_path / "other")]) == 2
    assert "expected one alpha for all layers, since a GGUF file holds one, but" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--out", str(tmp_path / "out"), "--relative-to", str(tmp_path / "equal")]) == 0
    assert (tmp_path / "out.gguf").is_file()
