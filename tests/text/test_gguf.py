"""GGUF files: the converted folder holds what the file does, once, whole, and nothing when the file is not readable."""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType, quants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cfg_distill.callbacks import AtomicCheckpointIO
from cfg_distill.errors import ConfigError
from cfg_distill.files import staged_folder
from cfg_distill.folders import Packaged, cache_folder, cached_name, converted, problems_of_folder, resolve
from cfg_distill.generators import CausalLM
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw
from cfg_distill.study import run

Q4_1 = GGMLQuantizationType.Q4_1
WIDTH, INNER = 32, 64
TOKENS = ["<unk>", "<s>", "</s>", *"abcdefgh", "ab", "cd"]
TEMPLATE = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
SHAPES = {
    "token_embd": (len(TOKENS), WIDTH),
    "blk.0.attn_q": (WIDTH, WIDTH),
    "blk.0.attn_k": (WIDTH, WIDTH),
    "blk.0.attn_v": (WIDTH, WIDTH),
    "blk.0.attn_output": (WIDTH, WIDTH),
    "blk.0.ffn_gate": (INNER, WIDTH),
    "blk.0.ffn_up": (INNER, WIDTH),
    "blk.0.ffn_down": (WIDTH, INNER),
}


def write(
    file: Path, kind: GGMLQuantizationType = GGMLQuantizationType.Q4_1, architecture: str = "llama", wrong: str = ""
) -> dict[str, np.ndarray]:
    """A Llama of one layer as GGUF; returns the matrices as the file holds them, dequantised.

    What may be wrong: it lacks a tensor, or has one or a setting that transformers leaves out.
    """
    random = np.random.default_rng(0)
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv([2] if architecture == "lfm2" else 2)
    if architecture == "lfm2":
        writer.add_shortconv_l_cache(3)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b", "c d"])
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    if wrong == "scaling":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
    if wrong in ("rope_freqs", "blk.0.attn_q.bias"):
        name = f"{wrong}.weight" if wrong == "rope_freqs" else wrong
        writer.add_tensor(name, np.ones(WIDTH // 4 if wrong == "rope_freqs" else WIDTH, np.float32))
    matrices = {}
    for name, shape in SHAPES.items():
        if name == wrong:
            continue
        raw = random.normal(size=shape).astype(np.float32)
        packed = quants.quantize(raw, kind)
        matrices[name] = quants.dequantize(packed, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return matrices


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CFG_DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.F32])
def test_the_folder_holds_the_matrices_and_the_tokenizer_of_the_file(tmp_path, own_cache, kind, capfd):
    matrices = write(tmp_path / "tiny.gguf", kind)
    folder = converted(tmp_path / "tiny.gguf")
    assert folder.parent == own_cache / "models"
    said = capfd.readouterr().err
    assert "Converting tiny.gguf to safetensors, once" in said
    assert str(folder) in said
    state = load_file(folder / "model.safetensors")
    theirs = {"token_embd": "model.embed_tokens", "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
              "blk.0.attn_v": "model.layers.0.self_attn.v_proj"}  # fmt: skip
    for name, its_name in theirs.items():
        np.testing.assert_array_equal(state[f"{its_name}.weight"].numpy(), matrices[name])
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abcde")["input_ids"] == [11, 12, 7]
    assert tokenizer.chat_template == TEMPLATE
    model.save_pretrained(tmp_path / "again")


def test_a_file_is_a_model_of_a_recipe_and_is_converted_once(tmp_path, own_cache, capfd):
    write(tmp_path / "tiny.gguf")
    path = str(tmp_path / "tiny.gguf")
    assert problems_of_folder(path) == []
    assert not own_cache.exists()
    generator = CausalLM(path)
    assert generator.problems() == []
    samples = draw(generator.load(), ["ab"], Sampling(samples=2, max_new_tokens=3))
    assert len(samples.outputs) == 2
    made = (Path(resolve(path)) / "model.safetensors").stat().st_mtime_ns
    assert (Path(resolve(path)) / "model.safetensors").stat().st_mtime_ns == made
    assert capfd.readouterr().err.count("Converting tiny.gguf") == 1


def test_another_file_of_the_same_name_is_another_model(tmp_path):
    write(tmp_path / "tiny.gguf")
    first = converted(tmp_path / "tiny.gguf")
    write(tmp_path / "tiny.gguf", GGMLQuantizationType.F16)
    assert converted(tmp_path / "tiny.gguf") != first


def test_a_file_that_differs_in_its_middle_is_another_model(tmp_path):
    content = bytearray(5 * 2**20)
    (tmp_path / "large.gguf").write_bytes(content)
    first = cached_name(tmp_path / "large.gguf")
    content[len(content) // 2] = 1
    (tmp_path / "large.gguf").write_bytes(content)
    assert cached_name(tmp_path / "large.gguf") != first


def test_of_several_at_once_one_converts(tmp_path, own_cache, capfd):
    """The lock is on an open file, so threads stand in for the processes of a study."""
    write(tmp_path / "tiny.gguf")
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(converted, [tmp_path / "tiny.gguf"] * 3))
    assert capfd.readouterr().err.count("safetensors, once") == 1
    assert {path for path in (own_cache / "models").iterdir() if path.name != ".lock"} == folders


def test_an_adapter_finds_its_packaged_base_again_when_the_cache_is_another(tmp_path, own_cache, monkeypatch):
    write(tmp_path / "tiny.gguf")
    packaged = Packaged("tiny-package", "tiny_module", "tiny.gguf", "a tiny model")
    monkeypatch.setattr(Packaged, "find", lambda self: tmp_path / "tiny.gguf")
    monkeypatch.setattr("cfg_distill.folders.PACKAGED", {"tiny": packaged})
    base = resolve(str(tmp_path / "tiny.gguf"))
    monkeypatch.setenv("CFG_DISTILL_CACHE", str(tmp_path / "another"))
    shutil.rmtree(own_cache)
    assert problems_of_folder(base) == []
    assert resolve(base) == str(tmp_path / "another" / "models" / Path(base).name)
    assert Path(resolve(base), "model.safetensors").is_file()
    (problem,) = problems_of_folder(str(own_cache / "models" / "other-0123"))
    assert "does not exist" in str(problem)


def test_an_unknown_architecture_is_told_and_leaves_nothing(tmp_path, own_cache):
    write(tmp_path / "odd.gguf", architecture="grok9")
    with pytest.raises(ConfigError, match=r"odd.gguf.*expected a GGUF file of a causal language model.*grok9"):
        converted(tmp_path / "odd.gguf")
    assert [path.name for path in (own_cache / "models").iterdir()] == [".lock"]


def test_an_unknown_quantisation_is_told_and_leaves_nothing(tmp_path, own_cache, monkeypatch):
    write(tmp_path / "odd.gguf", GGMLQuantizationType.Q8_0)
    # As gguf is when llama.cpp knows a type that its Python library does not.
    monkeypatch.delitem(quants._type_traits, GGMLQuantizationType.Q8_0)
    with pytest.raises(ConfigError, match=r"odd.gguf.*but: Dequantization for Q8_0 is not yet implemented"):
        converted(tmp_path / "odd.gguf")
    assert [path.name for path in (own_cache / "models").iterdir()] == [".lock"]


def test_code_beside_a_file_is_not_run_and_nobody_is_asked(tmp_path, monkeypatch):
    """The file chooses its architecture, and for some of them transformers reads the tokenizer's settings beside it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    write(tmp_path / "odd.gguf", architecture="lfm2")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": [null, "evil.Evil"]}}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ConfigError, match=r"odd.gguf.*expected a GGUF file"):
        converted(tmp_path / "odd.gguf")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_no_fault_of_the_file(tmp_path, own_cache, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / "tiny.gguf")
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(ConfigError, match=r"cache/models`: expected a cache .* No space left .* CFG_DISTILL_CACHE"):
        converted(tmp_path / "tiny.gguf")


def test_what_a_killed_conversion_left_is_removed(tmp_path, own_cache):
    write(tmp_path / "tiny.gguf")
    left = own_cache / "models" / f".{cached_name(tmp_path / 'tiny.gguf')}.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    folder = converted(tmp_path / "tiny.gguf")
    assert sorted(path.name for path in left.parent.iterdir()) == [".lock", folder.name]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("cfg_distill.files.locks.fcntl.flock", refused)
    write(tmp_path / "tiny.gguf")
    assert (converted(tmp_path / "tiny.gguf") / "model.safetensors").is_file()
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True) == {"step": 1}
    with run._locked(tmp_path) as file, staged_folder(tmp_path / "out"):
        assert not file.closed
    assert (tmp_path / "out").is_dir()


def test_what_the_first_bytes_tell(tmp_path):
    (tmp_path / "page.gguf").write_text("<!doctype html>")
    (problem,) = problems_of_folder(str(tmp_path / "page.gguf"))
    assert str(problem.under("path")).startswith("Key `path`: Model `")
    assert "expected a GGUF file, but it begins with b'<!do'" in str(problem)
    with pytest.raises(ConfigError, match="Download it again"):
        CausalLM(str(tmp_path / "page.gguf")).load()


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf")
    monkeypatch.setattr("cfg_distill.folders.gguf.find_spec", lambda name: None if name == "gguf" else name)
    (problem,) = problems_of_folder(str(tmp_path / "tiny.gguf"))
    assert "but gguf cannot be imported" in str(problem)
    assert 'pip install ".[text]"' in str(problem)


def test_the_folder_of_the_cache(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CFG_DISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cfg-distill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "cfg-distill"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("blk.0.ffn_down", "it lacks model.layers.0.mlp.down_proj.weight"),
        ("rope_freqs", "transformers takes no rope_freqs.weight"),
        ("blk.0.attn_q.bias", "transformers takes no blk.0.attn_q.bias"),
        ("scaling", "transformers ignores llama.rope.scaling.type = yarn"),
    ],
)
def test_a_file_of_which_transformers_makes_another_model_is_refused(tmp_path, own_cache, wrong, said):
    """It draws what is missing at random, and says nothing of what it leaves out."""
    write(tmp_path / "tiny.gguf", wrong=wrong)
    with pytest.raises(ConfigError, match=f"but: {said}"):
        converted(tmp_path / "tiny.gguf")
    assert not list(own_cache.rglob("*.safetensors"))
