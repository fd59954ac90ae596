"""Merging adapters: against merges of the whole models that peft makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.folders.adapters import AdapterFolder, Factors
from cfg_distill.merging import merge_adapters, merge_folders, merge_states
from cfg_distill.merging.adapters import inner
from tests.lora.conftest import Make


def base_state(folder: str) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def whole(base: str, folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights of base and adapter, added by peft."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    return model.merge_and_unload().state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


REQUESTS = [
    ("lerp", 2, [0.3, 0.7]),
    ("lerp", 2, [1.0, 0.0]),
    ("slerp", 2, [0.3, 0.7]),
    ("slerp", 2, [0.0, 1.0]),
    ("liti", 1, [0.6]),
    ("liti", 1, [0.0]),  # the base itself
    ("sum", 3, [0.7, 1.5, -0.2]),
    ("sum", 1, [1.5]),
    ("soup", 3, []),
    ("weighted", 3, [0.2, 0.5, 0.3]),
    ("ema", 3, [0.9]),
]


@pytest.mark.parametrize(("method", "number", "weights"), REQUESTS)
def test_the_merge_of_adapters_is_that_of_whole_models(
    tiny_model: str, adapter: Make, tmp_path: Path, method: str, number: int, weights: list[float]
) -> None:
    # Other ranks, scales, layers: nothing but the base is common.
    models = [
        adapter("a", 1),
        adapter("b", 2, r=3, use_rslora=True, target_modules=["q_proj", "o_proj"]),
        adapter(
            "c", 3, r=2, rank_pattern={"layers.1.self_attn.q_proj": 5}, alpha_pattern={"layers.0.mlp.down_proj": 1}
        ),
    ][:number]
    start = base_state(tiny_model) if method in ("slerp", "liti", "sum") else None
    expected = merge_states(method, [whole(tiny_model, model) for model in models], weights, start)
    merge_folders(models, weights, method, tmp_path / "out")
    equal(whole(tiny_model, tmp_path / "out"), expected)
    read = merge_adapters(method, [AdapterFolder(model).adapter() for model in models], weights)
    for layer, factors in read.items():
        torch.testing.assert_close(factors.delta_OI(), AdapterFolder(tmp_path / "out").factors(layer).delta_OI())


@pytest.mark.parametrize(("method", "weights"), [("slerp", [0.4, 0.6]), ("liti", [0.25])])
def test_the_start_may_be_an_adapter_that_both_began_with(
    tiny_model: str, adapter: Make, tmp_path: Path, method: str, weights: list[float]
) -> None:
    start, *models = adapter("start", 1), adapter("a", 2), adapter("b", 3)
    models = models[: len(weights)]
    expected = merge_states(method, [whole(tiny_model, model) for model in models], weights, whole(tiny_model, start))
    merge_folders(models, weights, method, tmp_path / "out", start=start)
    equal(whole(tiny_model, tmp_path / "out"), expected)
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["start"]["path"] == "start"


def test_the_ends_are_exact_and_ranks_add(adapter: Make, tmp_path: Path) -> None:
    a, b = adapter("a", 1), adapter("b", 2, r=3)
    merge_folders([a, b], [1.0, 0.0], "lerp", tmp_path / "end")
    ours, theirs = (load_file(Path(folder) / "adapter_model.safetensors") for folder in (tmp_path / "end", a))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    merge_folders([a, b], [0.5, 0.5], "lerp", tmp_path / "half")
    config = json.loads((tmp_path / "half" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (7, 7, {})
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (tmp_path / "half" / "tokenizer.json").is_file()


def test_nothing_of_a_model_is_the_base_as_an_adapter(tiny_model: str, adapter: Make, tmp_path: Path) -> None:
    model, out = adapter("a", 1, r=3), str(tmp_path / "out")
    assert main(["merge", "--models", model, "--weights", "0", "--method", "liti", "--out", out]) == 0
    equal(whole(tiny_model, tmp_path / "out"), base_state(tiny_model))
    assert AdapterFolder(tmp_path / "out").config["r"] == 3


def test_averaging_the_factors_would_be_wrong(tiny_model: str, adapter: Make, tmp_path: Path) -> None:
    """peft's `linear` mixes A and B apart; ours, and peft's `cat`, do not."""
    a, b = adapter("a", 1), adapter("b", 2)
    merge_folders([a, b], [0.5, 0.5], "lerp", tmp_path / "half")
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), a, adapter_name="a")
    model.load_adapter(b, "b")
    model.load_adapter(tmp_path / "half", "ours")
    for kind in ("cat", "linear"):
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], kind, combination_type=kind)
    tokens = torch.arange(3, 12)[None]
    logits = {}
    for name in ("ours", "cat", "linear"):
        model.set_adapter(name)
        logits[name] = model(tokens).logits
    torch.testing.assert_close(logits["ours"], logits["cat"])
    assert (logits["ours"] - logits["linear"]).abs().max() > 0.1


def test_the_inner_product_needs_no_matrix() -> None:
    torch.manual_seed(0)
    one = Factors(torch.randn(3, 7), torch.randn(5, 3), 0.5)
    other = Factors(torch.randn(4, 7), torch.randn(5, 4), 2.0)
    assert inner(one, other) == pytest.approx(float((one.delta_OI() * other.delta_OI()).sum()), rel=1e-5)


def test_half_precision_stays_half_precision(tiny_model: str, adapter: Make, tmp_path: Path) -> None:
    halves = []
    for name, seed in (("a", 1), ("b", 2)):
        path = adapter(name, seed)
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_model), path, autocast_adapter_dtype=False
        )
        model.to(torch.bfloat16).save_pretrained(path)
        halves.append(path)
    merge_folders(halves, [0.5, 0.5], "lerp", tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
    one, other, merged = (AdapterFolder(path) for path in (*halves, tmp_path / "out"))
    for layer in one.shapes:
        expected = (one.factors(layer).delta_OI() + other.factors(layer).delta_OI()) / 2
        torch.testing.assert_close(merged.factors(layer).delta_OI(), expected, atol=0.02, rtol=0.02)


def test_engines_that_read_no_patterns_read_the_merge(adapter: Make, tmp_path: Path) -> None:
    """vLLM multiplies every layer by lora_alpha / r, llama.cpp by lora_alpha and the tensor's own rank."""
    a = adapter("a", 1, use_rslora=True)
    b = adapter("b", 2, r=3, rank_pattern={"layers.1.self_attn.q_proj": 5}, alpha_pattern={"layers.0.mlp.down_proj": 1},
                target_modules=["q_proj", "o_proj", "down_proj"])  # fmt: skip
    for weights in ([0.3, 0.7], [0.0, 1.0]):
        merge_folders([a, b], weights, "lerp", tmp_path / "out", overwrite=True)
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert not config["rank_pattern"] and not config["alpha_pattern"] and not config["use_rslora"]
        tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
        expected = merge_adapters("lerp", [AdapterFolder(path).adapter() for path in (a, b)], weights)
        for layer, factors in expected.items():
            a_RI, b_OR = (tensors[f"base_model.model.{layer}.lora_{which}.weight"] for which in "AB")
            assert len(a_RI) == b_OR.shape[1] == config["r"]
            torch.testing.assert_close(config["lora_alpha"] / config["r"] * (b_OR @ a_RI), factors.delta_OI())


def test_tensors_of_several_dtypes_are_read_in_the_widest(adapter: Make, tmp_path: Path) -> None:
    a, b = adapter("a", 1), adapter("b", 2)
    file = Path(a) / "adapter_model.safetensors"
    tensors = load_file(file)
    rounded = {name: each.bfloat16() if "lora_A" in name or ".0." in name else each for name, each in tensors.items()}
    save_file(rounded, file, metadata={"format": "pt"})
    for models, weights in (([a, b], [0.5, 0.5]), ([a], [0.5])):
        out = merge_folders(models, weights, "lerp" if len(models) == 2 else "liti", tmp_path / f"{len(models)}")
        read = AdapterFolder(out)
        assert read.dtype == torch.float32
        parts = [AdapterFolder(model) for model in models]
        for layer in parts[0].shapes:
            expected = sum(0.5 * part.factors(layer).delta_OI() for part in parts)
            torch.testing.assert_close(read.factors(layer).delta_OI(), expected)


def test_files_that_the_first_adapter_lacks_are_those_of_another(adapter: Make, tmp_path: Path) -> None:
    a, b = adapter("a", 1), adapter("b", 2)
    for file in Path(a).glob("*token*"):
        file.unlink()
    assert (merge_folders([a, b], [0.5, 0.5], "lerp", tmp_path / "out") / "tokenizer.json").is_file()


# What is refused, before anything is written


def refused(out: Path, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        merge_folders(*arguments, out, **settings)
    assert not out.exists()
    return str(caught.value)


def test_whole_models_and_adapters_do_not_mix(tiny_model: str, adapter: Make, tmp_path: Path) -> None:
    a = adapter("a")
    message = refused(tmp_path / "out", [a, tiny_model], [0.5, 0.5], "lerp")
    assert f"`{a}` are adapters and `{tiny_model}` are none" in message and "--merged" in message


def test_other_bases_are_refused_and_copies_of_one_are_not(tiny_model: str, adapter: Make, tmp_path: Path) -> None:
    from tiny import tiny_folder

    a, b = adapter("a", 1), adapter("b", 2)
    config = Path(b) / "adapter_config.json"
    saved = json.loads(config.read_text())
    config.write_text(json.dumps(saved | {"base_model_name_or_path": tiny_folder(tmp_path / "copy")}))
    merge_folders([a, b], [0.5, 0.5], "lerp", tmp_path / "of copies")
    config.write_text(json.dumps(saved | {"base_model_name_or_path": tiny_folder(tmp_path / "other", seed=1)}))
    message = refused(tmp_path / "out", [a, b], [0.5, 0.5], "lerp")
    assert "expected adapters of one base" in message and "other" in message and tiny_model in message
    config.write_text(json.dumps(saved))
    message = refused(tmp_path / "out", [a, b], [0.5, 0.5], "slerp", start=tmp_path / "other")
    assert "expected the base of the adapters" in message
    merge_folders([a, b], [0.5, 0.5], "slerp", tmp_path / "of base", start=tiny_model)
    config.write_text(json.dumps(saved | {"base_model_name_or_path": None}))
    assert "names none" in refused(tmp_path / "out", [a, b], [0.5, 0.5], "lerp")


def rewrite(path: str, **settings: Any) -> None:
    file = Path(path) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "sets init_lora_weights pissa_niter_4, which changes the base"),
        ({"kasa_config": {"beta": 1}}, "sets kasa_config"),
        ({"alpha_pattern": ["q"]}, "names of layers with a number each as alpha_pattern, but found ['q']"),
        ({"alpha_pattern": {"q(": 4}}, "patterns of names in alpha_pattern, but `q(` is none"),
        ({"rank_pattern": {"q": "8"}}, "a number above 0 for `q` in rank_pattern, but found '8'"),
        ({"lora_alpha": None}, "a number as lora_alpha, but found None"),
        ({"lora_alpha": float("nan")}, "a number as lora_alpha, but found nan"),
        ({"r": 0}, "a number above 0 as r, but found 0"),
        ({"target_modules": [1, "q_proj"]}, "names of layers as target_modules, but found [1, 'q_proj']"),
        ({"revision": "abc"}, "adapters of one revision of their base, but"),
    ],
)
def test_a_malformed_or_another_configuration_is_named(
    adapter: Make, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    a, b = adapter("a"), adapter("b")
    rewrite(b, **settings)
    message = refused(tmp_path / "out", [a, b], [0.5, 0.5], "lerp")
    assert said in message and b in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, b: (a, b[:, :3]), "of rank 4 in lora_A and 3 in lora_B"),
        (lambda a, b: (a[:0], b[:, :0]), "of rank 0 in lora_A and 0 in lora_B"),
        (lambda a, b: (a.to(torch.float8_e4m3fn), b), "expected tensors of F64, F32, F16, BF16"),
        (lambda a, b: (a, b.int()), "(I32)"),
    ],
)
def test_tensors_that_are_no_factors_are_named(adapter: Make, tmp_path: Path, change: Any, said: str) -> None:
    a, b = adapter("a"), adapter("b")
    file = Path(b) / "adapter_model.safetensors"
    tensors = load_file(file)
    one, other = (
        next(name for name in tensors if "layers.1" in name and f"v_proj.lora_{which}" in name) for which in "AB"
    )
    tensors[one], tensors[other] = (each.contiguous() for each in change(tensors[one], tensors[other]))
    save_file(tensors, file, metadata={"format": "pt"})
    assert said in refused(tmp_path / "out", [a, b], [0.5, 0.5], "lerp")


def test_a_merge_beyond_the_range_of_its_dtype_is_refused(adapter: Make, tmp_path: Path) -> None:
    assert "lora_B holds values that are no numbers" in refused(
        tmp_path / "out", [adapter("a"), adapter("b")], [1e39, 1.0], "sum"
    )


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}])
def test_more_than_plain_lora_is_refused(adapter: Make, tmp_path: Path, settings: dict[str, Any]) -> None:
    a, b = adapter("a"), adapter("b", **settings)
    message = refused(tmp_path / "out", [a, b], [0.5, 0.5], "lerp")
    assert f"sets {next(iter(settings))}" in message and f"in `{b}`" in message


def test_broken_folders_and_requests_are_named_together(adapter: Make, tmp_path: Path) -> None:
    a, b = adapter("a"), adapter("b")
    (Path(b) / "adapter_model.safetensors").write_bytes(b"short")
    message = refused(tmp_path / "out", [a, b], [0.5, 0.6], "lerp")
    assert "cannot be read as safetensors" in message and "expected a sum of 1" in message
    (Path(b) / "adapter_model.safetensors").unlink()
    assert "it is not there" in refused(tmp_path / "out", [a, b], [0.5, 0.5], "lerp")
    with pytest.raises(ConfigError, match="Shapes of layers differ"):
        merge_adapters("soup", [{"x": Factors(torch.ones(1, n), torch.ones(2, 1), 1.0)} for n in (2, 3)])


def test_a_folder_is_replaced_but_not_an_input(adapter: Make, tiny_model: str, tmp_path: Path) -> None:
    a, b, start = adapter("a"), adapter("b"), adapter("start")
    request: dict[str, Any] = {"models": [a, b], "weights": [0.5, 0.5], "method": "slerp", "start": start}
    for out in (a, start, str(tmp_path), tiny_model):  # the base, too: without it no adapter is a model
        with pytest.raises(ConfigError, match=f"`{out}` (is|holds) the input"):
            merge_folders(**request, out=out, overwrite=True)
    out = merge_folders(**request, out=tmp_path / "out")
    merge_folders(**request, out=out, overwrite=True)
    (out / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"does not write README\.md there"):
        merge_folders(**request, out=out, overwrite=True)


def test_adapters_that_hold_no_numbers_are_refused(adapter: Make, tmp_path: Path) -> None:
    a, b = adapter("a"), adapter("b")
    file = Path(b) / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1" in name and "v_proj.lora_B" in name)
    tensors[name][1, 1] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    for method, weights in (("lerp", [0.5, 0.5]), ("slerp", [0.5, 0.5])):
        message = refused(tmp_path / "out", [a, b], weights, method)
        assert "layers.1.self_attn.v_proj.lora_B" in message and f"`{b}` holds values that are no numbers" in message
