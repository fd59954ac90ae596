"""A bit that flips in an exported or merged model is found before its weights are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_adapted, tiny_folder
from tiny_fits import batches, student_of, trainer

from cfg_distill.checkpoints import export
from cfg_distill.errors import ConfigError
from cfg_distill.files import strangers
from cfg_distill.folders import CHECKSUMS, write_checksums
from cfg_distill.folders.adapters import AdapterFolder
from cfg_distill.generators import CausalLM
from cfg_distill.merging import merge_folders


@pytest.fixture(scope="module")
def exported(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, exported."""
    folder = tmp_path_factory.mktemp("exported")
    fitted = trainer([], root=folder)
    fitted.fit(student_of(tiny_model), batches(1))
    fitted.save_checkpoint(folder / "last.ckpt")
    export(folder / "last.ckpt", folder / "student")
    return folder / "student"


def flip(file: Path) -> None:
    """One bit in the middle of the weights: still a file of numbers."""
    content = bytearray(file.read_bytes())
    content[-1000] ^= 0x08
    file.write_bytes(bytes(content))


def test_an_export_and_a_merge_say_what_they_wrote(exported: Path, tmp_path: Path) -> None:
    merged = merge_folders([exported, exported], [0.5, 0.5], "lerp", out=tmp_path / "merged")
    for folder in (exported, merged):
        assert list(json.loads((folder / CHECKSUMS).read_text())["sha256"]) == ["model.safetensors"]
        assert strangers(folder) == []
        CausalLM(str(folder)).load()


def test_a_flipped_bit_is_refused_wherever_weights_are_read(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(exported, folder)
    CausalLM(str(folder)).load()
    flip(folder / "model.safetensors")
    assert load_file(folder / "model.safetensors").keys(), "safetensors itself does not notice"
    message = r"model.safetensors` is damaged: its SHA-256 .* remove their entry from checksums.json"
    with pytest.raises(ConfigError, match=message):
        CausalLM(str(folder)).load()
    with pytest.raises(ConfigError, match=message):
        merge_folders([exported, folder], [0.5, 0.5], "lerp", out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    # Changed on purpose: without the entry, or without the file, the weights are taken as they are.
    (folder / CHECKSUMS).write_text('{"sha256": {}}')
    CausalLM(str(folder)).load()
    (folder / CHECKSUMS).unlink()
    CausalLM(str(folder)).load()


def test_a_flipped_bit_in_an_adapter(tmp_path: Path) -> None:
    tiny_adapted(tiny_folder(tmp_path / "base")).save(tmp_path / "adapter")
    write_checksums(tmp_path / "adapter")
    AdapterFolder(tmp_path / "adapter")
    content = bytearray((tmp_path / "adapter" / "adapter_model.safetensors").read_bytes())
    content[-9] ^= 0x08
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(bytes(content))
    with pytest.raises(ConfigError, match=r"adapter_model.safetensors` is damaged"):
        AdapterFolder(tmp_path / "adapter")


@pytest.mark.parametrize("text", ["", "[1]", '{"sha256": 3}', '{"sha256": {"other": "x"}}', "\xff"])
def test_another_file_of_that_name_is_none_of_ours(exported: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "student"
    shutil.copytree(exported, folder)
    (folder / CHECKSUMS).write_text(text, encoding="latin-1")
    generator = CausalLM(str(folder)).load()
    assert all(torch.isfinite(weight).all() for weight in generator.parameters())
