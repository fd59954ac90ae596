"""Merging of Hugging Face folders: what is written, what transformers makes of it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.merging import lerp, merge_folders, slerp, soup


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return [tiny_folder(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "start"))]


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("method", ["lerp", "slerp", "soup"])
def test_a_merged_folder_is_the_merged_state_and_loads_in_transformers(
    models: list[str], tmp_path: Path, method: str
) -> None:
    a, b, start = (state(model) for model in models)
    weights = [] if method == "soup" else [0.75, 0.25]
    out = merge_folders(models[:2], weights, method, tmp_path / "out", start=models[2] if method == "slerp" else None)
    expected = {"lerp": lerp(a, b, 0.25), "slerp": slerp(a, b, start, 0.25), "soup": soup([a, b])}[method]
    assert_equal(state(out), expected)
    assert (
        AutoTokenizer.from_pretrained(out)("w3 w4")["input_ids"]
        == AutoTokenizer.from_pretrained(models[0])("w3 w4")["input_ids"]
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("weights", "end"), [([1.0, 0.0], 0), ([0.0, 1.0], 1)])
def test_the_ends_are_the_models(models: list[str], tmp_path: Path, weights: list[float], end: int) -> None:
    assert_equal(state(merge_folders(models[:2], weights, "lerp", tmp_path / "out")), state(models[end]))


def test_shards_in_and_out_change_nothing(models: list[str], tmp_path: Path) -> None:
    single = merge_folders(models[:2], [0.5, 0.5], "lerp", tmp_path / "single")
    AutoModelForCausalLM.from_pretrained(models[1]).save_pretrained(tmp_path / "b-sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "b-sharded").glob("model-*.safetensors"))) > 1
    sharded = merge_folders(
        [models[0], tmp_path / "b-sharded"], [0.5, 0.5], "lerp", tmp_path / "sharded", max_shard_bytes=4000
    )
    files = sorted(sharded.glob("model-*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 6000 for file in files)
    assert not (sharded / "model.safetensors").exists()
    together = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert_equal(together, load_file(single / "model.safetensors"))
    assert_equal(state(sharded), state(single))


def test_bfloat16_in_bfloat16_out(models: list[str], tmp_path: Path) -> None:
    half = []
    for model in models[:2]:
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(
            tmp_path / f"{Path(model).name}16"
        )
        half.append(tmp_path / f"{Path(model).name}16")
    merged = load_file(merge_folders(half, [0.4, 0.6], "weighted", tmp_path / "out") / "model.safetensors")
    a, b = (load_file(folder / "model.safetensors") for folder in half)
    for name in a:
        expected = (0.4 * a[name].float() + 0.6 * b[name].float()).bfloat16()
        torch.testing.assert_close(merged[name], expected, rtol=2**-7, atol=1e-6)
        # Computed in float32: nothing but a tie can be rounded the other way.
        assert (merged[name] == expected).float().mean() > 0.98


def test_every_dtype_of_a_file_and_empty_and_scalar_tensors_survive_the_writer(tmp_path: Path) -> None:
    tensors = {
        "bool": torch.tensor([True, False, True]), "int": torch.arange(3), "byte": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "double": torch.rand(3, dtype=torch.float64),
        "half": torch.rand(3).half(), "brain": torch.rand(2, 3).bfloat16(),
    }  # fmt: skip
    for name in "ab":
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    out = merge_folders([tmp_path / "a", tmp_path / "b"], [], "soup", tmp_path / "out")
    assert_equal(load_file(out / "model.safetensors"), tensors)


def tied_folder(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


def test_tied_tensors_stored_once_or_twice(tmp_path: Path) -> None:
    a, b = tied_folder(tmp_path / "a", 0), tied_folder(tmp_path / "b", 1)
    once = load_file(b / "model.safetensors")
    assert "lm_head.weight" not in once
    embedding = once["model.embed_tokens.weight"]
    save_file(once | {"lm_head.weight": embedding.clone()}, b / "model.safetensors", metadata={"format": "pt"})
    merged = AutoModelForCausalLM.from_pretrained(merge_folders([a, b], [0.5, 0.5], "lerp", tmp_path / "out"))
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    expected = (load_file(a / "model.safetensors")["model.embed_tokens.weight"] + embedding) / 2
    torch.testing.assert_close(merged.lm_head.weight.detach(), expected)


def test_liti_and_ema(models: list[str], tmp_path: Path) -> None:
    a, b, start = (state(model) for model in models)
    assert_equal(
        state(merge_folders(models[:1], [0.3], "liti", tmp_path / "liti", start=models[2])), lerp(start, a, 0.3)
    )
    assert_equal(state(merge_folders(models[:2], [0.9], "ema", tmp_path / "ema")), lerp(b, a, 0.9))


def test_provenance(models: list[str], tmp_path: Path) -> None:
    out = merge_folders(models[:2], [0.5, 0.5], "slerp", tmp_path / "out", start=models[2])
    written = json.loads((out / "merge.json").read_text())
    assert (written["method"], written["weights"]) == ("slerp", [0.5, 0.5])
    assert [model["path"] for model in written["models"]] == ["a", "b"]
    sha256 = subprocess.run(["sha256sum", f"{models[2]}/model.safetensors"], capture_output=True, text=True, check=True)
    assert written["start"] == {"path": "start", "sha256": {"model.safetensors": sha256.stdout.split()[0]}}


def test_an_existing_folder_is_refused_and_replaced_only_when_asked(models: list[str], tmp_path: Path) -> None:
    out = merge_folders(models[:2], [1.0, 0.0], "lerp", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"`out`: expected a new folder.*`overwrite`"):
        merge_folders(models[:2], [0.0, 1.0], "lerp", out)
    assert_equal(state(out), state(models[0]))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not replaced, since this package does not write notes\.txt there"):
        merge_folders(models[:2], [0.0, 1.0], "lerp", out, overwrite=True)
    assert_equal(state(out), state(models[0]))
    (out / "notes.txt").unlink()
    merge_folders(models[:2], [0.0, 1.0], "lerp", out, overwrite=True)
    assert_equal(state(out), state(models[1]))


def test_overwriting_spares_the_inputs_and_folders_that_are_no_models(models: list[str], tmp_path: Path) -> None:
    for out, how in (
        (models[0], "is the input"),
        (models[2], "is the input"),
        (tmp_path, "holds the input"),
        (f"{models[0]}/merged", "lies in the input"),
    ):
        with pytest.raises(ConfigError, match=f"`{out}` {how}"):
            merge_folders(models[:2], [0.5, 0.5], "slerp", out, start=models[2], overwrite=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match=r"does not write thesis\.tex there"):
        merge_folders(models[:2], [0.5, 0.5], "lerp", precious, overwrite=True)
    assert (precious / "thesis.tex").exists() and not (Path(models[0]) / "merged").exists()


def test_an_input_is_spared_under_any_of_its_names(models: list[str], tmp_path: Path) -> None:
    """Its folder may be reached by a link; its weights may be a link into the folder to be replaced."""
    (tmp_path / "link").symlink_to(models[0])
    with pytest.raises(ConfigError, match=r"a` is the input `.*link`"):
        merge_folders([tmp_path / "link", models[1]], [0.5, 0.5], "lerp", models[0], overwrite=True)
    out = merge_folders(models[:2], [0.5, 0.5], "lerp", tmp_path / "out")
    weights = Path(models[1]) / "model.safetensors"
    weights.unlink()
    weights.symlink_to(out / "model.safetensors")
    with pytest.raises(ConfigError, match=r"out` holds the input `.*b/model\.safetensors`"):
        merge_folders(models[:2], [0.5, 0.5], "lerp", out, overwrite=True)
    assert weights.exists()


def test_the_command_names_options(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["merge", "--models", *models[:2], "--weights", "0.5", "--method", "lerp", "--start", models[2]]
    assert main([*words, "--out", str(tmp_path), "--overwrite"]) == 2
    message = capsys.readouterr().err
    for option in ("--weights", "--start", "--out"):
        assert f"Option `{option}`: " in message
    assert "Key `" not in message


def test_files_that_a_merge_took_along_do_not_stand_in_the_way(models: list[str], tmp_path: Path) -> None:
    out = merge_folders(models[:2], [0.5, 0.5], "lerp", tmp_path / "plain")
    assert "carried" not in json.loads((out / "merge.json").read_text())
    for name in ("sentence_config.json", "LICENSE", "modeling_own.py", "licenses.txt"):
        (Path(models[0]) / name).write_text("{}")
    out = merge_folders(models[:2], [0.5, 0.5], "lerp", tmp_path / "out")
    assert json.loads((out / "merge.json").read_text())["carried"] == ["licenses.txt", "sentence_config.json"]
    merge_folders(models[:2], [0.5, 0.5], "lerp", out, overwrite=True)
    again = merge_folders([out, models[1]], [0.5, 0.5], "lerp", tmp_path / "again")
    assert (again / "licenses.txt").exists()
    merge_folders([out, models[1]], [0.5, 0.5], "lerp", again, overwrite=True)


def test_a_merge_that_fails_half_way_leaves_nothing(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("disk on fire")

    out = merge_folders(models[:2], [1.0, 0.0], "lerp", tmp_path / "out")
    monkeypatch.setattr("cfg_distill.merging.folders.provenance", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        merge_folders(models[:2], [0.5, 0.5], "lerp", out, overwrite=True)
    assert_equal(state(out), state(models[0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out", "start"]


def test_all_problems_of_a_request_come_together_and_nothing_is_written(models: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError) as error:
        merge_folders(
            [tmp_path / "empty", tmp_path / "pickled", tmp_path / "nowhere"], [0.5, 0.7], "weighted", tmp_path / "out"
        )
    problems = [str(problem) for problem in error.value.problems]
    assert len(problems) == 4
    assert "expected 3 for the method weighted" in problems[0]
    assert "but found no weights" in problems[1]
    assert "but found only pytorch_model.bin" in problems[2]
    assert "there is none at" in problems[3]
    assert not (tmp_path / "out").exists()


def test_different_architectures_are_refused(models: list[str], tmp_path: Path) -> None:
    other = tied_folder(tmp_path / "other", 0)
    with pytest.raises(
        ConfigError, match=r"(?s)lacks: lm_head.weight.*model.embed_tokens.weight \[16, 16\] vs \[16, 8\]"
    ):
        merge_folders([models[0], other], [0.5, 0.5], "lerp", tmp_path / "out")


def test_equal_shapes_under_another_config_are_refused(models: list[str], tmp_path: Path) -> None:
    path = Path(models[1]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 4, "_name_or_path": "elsewhere"}))
    with pytest.raises(ConfigError, match=r"config.json differ in num_attention_heads \(2 vs 4\)\."):
        merge_folders(models[:2], [0.5, 0.5], "lerp", tmp_path / "out")


def test_a_tokenizer_that_the_first_folder_lacks_is_that_of_another(models: list[str], tmp_path: Path) -> None:
    for file in Path(models[0]).glob("tokenizer*"):
        file.unlink()
    merge_folders(models[:2], [0.5, 0.5], "lerp", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w1")["input_ids"]


def test_one_model_as_transformers_4_and_5_write_it(models: list[str], tmp_path: Path) -> None:
    """Version 4 has the rotary base at the top, and leaves out what is the default."""
    path = Path(models[1]) / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    del config["head_dim"]
    path.write_text(json.dumps(config))
    for order in (models[:2], models[1::-1]):
        merge_folders(order, [0.5, 0.5], "lerp", tmp_path / "out", overwrite=True)
    path.write_text(json.dumps(config | {"rope_theta": 500.0}))
    with pytest.raises(ConfigError, match=r"config.json differ in rope_parameters.rope_theta \(10000.0 vs 500.0\)\."):
        merge_folders(models[:2], [0.5, 0.5], "lerp", tmp_path / "another")


def test_truncated_and_missing_files_are_named(models: list[str], tmp_path: Path) -> None:
    shutil.copytree(models[0], tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    AutoModelForCausalLM.from_pretrained(models[1]).save_pretrained(tmp_path / "holed", max_shard_size="4KB")
    victim = min((tmp_path / "holed").glob("model-*.safetensors"))
    victim.unlink()
    with pytest.raises(ConfigError, match=rf"(?s)cut/model.safetensors` cannot be read.*not there: {victim.name}"):
        merge_folders([tmp_path / "cut", tmp_path / "holed"], [0.5, 0.5], "lerp", tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["lerp", "slerp", "soup"])
def test_weights_that_are_no_numbers_are_refused(models: list[str], tmp_path: Path, method: str, value: float) -> None:
    file = Path(models[1]) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][2] = value
    save_file(tensors, file, metadata={"format": "pt"})
    weights = [] if method == "soup" else [1.0, 0.0]  # a share of 0 does not excuse it
    start = models[2] if method == "slerp" else None
    with pytest.raises(ConfigError, match=r"Tensor model\.norm\.weight of `.*b` holds values that are no numbers"):
        merge_folders(models[:2], weights, method, tmp_path / "out", start=start)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "start"]


def test_a_merge_that_overflows_is_refused(tmp_path: Path) -> None:
    """The middle of an arc lies outside of the line between its ends, and half precision ends at 65,504."""
    values = {"a": [65000.0, 20000.0], "b": [65000.0, -20000.0], "start": [0.0, 0.0]}
    for name, row in values.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"w": torch.tensor(row).half()}, tmp_path / name / "model.safetensors")
    folders = [tmp_path / name for name in "ab"]
    merge_folders(folders, [0.5, 0.5], "lerp", tmp_path / "line")
    with pytest.raises(ConfigError, match="The merge of w holds values that are no numbers"):
        merge_folders(folders, [0.5, 0.5], "slerp", tmp_path / "arc", start=tmp_path / "start")


def test_the_first_folder_must_hold_the_configuration(models: list[str], tmp_path: Path) -> None:
    (Path(models[0]) / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"Key `models`: expected config\.json in `.*a`"):
        merge_folders(models[:2], [0.5, 0.5], "lerp", tmp_path / "out")
    merge_folders([models[1], models[0]], [0.5, 0.5], "lerp", tmp_path / "out")
    (Path(models[1]) / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json`: expected JSON"):
        merge_folders([models[1], models[0]], [0.5, 0.5], "lerp", tmp_path / "out", overwrite=True)


@pytest.mark.slow
def test_memory_holds_a_few_tensors_not_the_models(tmp_path: Path) -> None:
    """Two models of 192 MiB in 24 tensors of 8 MiB: the merge may allocate some tensors, not a model."""
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        save_file(
            {f"w{number}": torch.full((1024, 2048), float(seed)) for number in range(24)},
            tmp_path / name / "model.safetensors",
        )
        (tmp_path / name / "config.json").write_text("{}")
    script = f"""
import torch
torch.set_num_threads(1)
from cfg_distill.merging import merge_folders
def anonymous():  # what is mapped from files can be dropped at any moment, and is no cost
    return int(next(line for line in open('/proc/self/status') if line.startswith('RssAnon')).split()[1]) // 1024
import threading, time
peak, running = [anonymous()], True
def watch():
    while running:
        peak.append(anonymous()); time.sleep(0.002)
watcher = threading.Thread(target=watch); watcher.start()
merge_folders([{str(tmp_path / "a")!r}, {str(tmp_path / "b")!r}], [0.5, 0.5], 'lerp', {str(tmp_path / "out")!r})
running = False; watcher.join()
print(max(peak) - peak[0])
"""
    # A fixed threshold: else glibc moves large blocks to its heap after the first one, where they leave holes.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=settings)
    assert int(done.stdout) < 48
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w7"], torch.full((1024, 2048), 0.5))


def test_listing_the_methods_needs_no_torch() -> None:
    script = "import sys; from cfg_distill.merging import METHODS; assert 'torch' not in sys.modules; print(*METHODS)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lerp", "slerp", "liti", "soup", "weighted", "sum", "ema"]


def test_a_bias_that_forbids_tokens_is_merged_and_an_infinite_weight_is_not(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        bias = torch.tensor([value, -torch.inf])
        save_file({"lm_head.bias": bias, "w": torch.full((2, 2), value)}, tmp_path / name / "model.safetensors")
    for method in ("lerp", "soup"):
        weights = [0.5, 0.5] if method == "lerp" else []
        merge_folders([tmp_path / "a", tmp_path / "b"], weights, method, tmp_path / method)
        assert load_file(tmp_path / method / "model.safetensors")["lm_head.bias"].tolist() == [2, -torch.inf]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_merge_of_two_dtypes_loads_as_it_is_written(tmp_path: Path, order: str) -> None:
    for name, dtype in (("a", torch.bfloat16), ("b", torch.float32)):
        folder = tiny_folder(tmp_path / name, seed=ord(name))
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    merge_folders([tmp_path / name for name in order], [0.5, 0.5], "lerp", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert written.dtype == loaded.dtype == torch.float32


def test_a_config_stays_where_no_model_has_wider_weights(tmp_path: Path) -> None:
    """Norms in float32 beside weights in bfloat16 are common, and such a model shall not load twice as large."""
    for name in "ab":
        folder = tiny_folder(tmp_path / name, seed=ord(name))
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
        tensors = load_file(tmp_path / name / "model.safetensors")
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    merge_folders([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], "lerp", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
