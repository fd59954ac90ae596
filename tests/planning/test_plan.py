"""`cfg-distill plan`: its table, its JSON, what fits, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_folder
from transformers import AutoModelForCausalLM

from cfg_distill.cli import main
from cfg_distill.generators.linear import Linear
from cfg_distill.planning import machines
from cfg_distill.planning.dry import bytes_of, dry
from cfg_distill.planning.fit import _longest, fit_of
from cfg_distill.planning.known import ARCHITECTURES, musicgen
from cfg_distill.planning.machines import GPUS, Device, device_of
from cfg_distill.planning.plan import ROOM, Planner, micro_batches
from cfg_distill.recipe.overrides import Override, sorted_words
from cfg_distill.recipe.ranks import most_processes
from cfg_distill.recipe.resolved import Recipe
from cfg_distill.tunes.metrics import TuneQuality

RECIPE = """
model:
  generator: {{class_path: cfg_distill.generators.CausalLM, init_args: {{path: {path}}}}}
  sampling: {{samples: 4, max_new_tokens: 50}}
  losses: {{kl: cfg_distill.losses.ReverseKL}}
data: {{train: train.txt, batch_size: 4}}
trainer: {{max_steps: 2, callbacks: {{ema: cfg_distill.callbacks.StudentEMA}}}}
"""


@pytest.fixture
def recipe(folder: Path, tiny_model: str) -> str:
    (folder / "recipe.yaml").write_text(RECIPE.format(path=tiny_model))
    (folder / "train.txt").write_text("w1 w2 w3\nw4\nw5 w6\nw7 w8 w9 w10\nw11\n")
    return "recipe.yaml"


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    main(["plan", "--config", *words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_table_says_what_fits(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", recipe, "--gpu", "h100"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "H100",
        "student",
        "averages",
        "key-value cache",
        "activations",
        "logits chunk",
        "It fits",
        "at least",
    ):
        assert word in shown
    assert main(["plan", "--config", recipe, "--memory", "0.00001"]) == 1
    assert "Nothing fits" in capsys.readouterr().out


def test_an_engine_need_not_run_for_a_plan(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = planned(capsys, recipe, "--gpu", "h100")
    engine = planned(capsys, recipe, "--gpu", "h100", "--model.sampler", ENGINE)
    assert engine["asked"] == own["asked"]
    (note,) = [note for note in engine["notes"] if note not in own["notes"]]
    assert "vLLM" in note and "own loop" in note


def test_memory_decides_the_micro_batch_and_the_strategy(recipe: str) -> None:
    with fit_of(Recipe.read([recipe])) as fit, dry():
        planner = Planner(fit, GPUS["h100"], 4, {})
        whole, small, eight = (planner.split("auto", rows) for rows in (16, 1, 8))
        ddp, sharded = planner.split("ddp", 16), planner.split("fsdp2", 16)
        assert planner.largest_that_fits() == ddp
        peaks = {rows: planner.split("ddp", rows).peak for rows in micro_batches(4, 16)}
        limit = (peaks[8] + peaks[16]) / 2
        planner.device = replace(planner.device, memory=limit / ROOM)
        found = planner.largest_that_fits()
        planner.device = replace(planner.device, memory=(planner.split("fsdp2", 1).peak + peaks[1]) / 2 / ROOM)
        in_shards = planner.largest_that_fits()
    assert whole.peak == sum(whole.always.values()) + max(phase.bytes for phase in whole.phases.values())
    assert 5 < eight.phases["scoring"].held["activations"] / small.phases["scoring"].held["activations"] < 8.5
    assert len(small.phases["scoring"].work) == 16 and len(eight.phases["scoring"].work) == 2
    assert ddp.always["buckets of gradients"] == whole.always["gradients"]
    for name in ("student", "teacher", "gradients", "optimiser", "averages"):
        assert sharded.always[name] == whole.always[name] // 4
    largest = max(rows for rows, peak in peaks.items() if peak <= limit)
    assert found is not None and (found.strategy, found.micro_batch) == ("ddp", largest) and 8 <= largest < 16
    assert in_shards is not None and in_shards.strategy == "fsdp2"


def test_the_heap_of_a_cpu_takes_half_of_the_activations_on_top(recipe: str) -> None:
    with fit_of(Recipe.read([recipe])) as fit, dry():
        here, there = (Planner(fit, device_of(gpu, None, 1), 1, {}).split("auto", 4) for gpu in (None, "h100"))
    scoring = here.phases["scoring"].held
    assert scoring["holes of the heap"] == round(scoring["activations"] / 2) > 0
    assert "holes of the heap" not in there.phases["scoring"].held


def test_gathered_weights_are_packed_on_a_cpu(recipe: str) -> None:
    with fit_of(Recipe.read([recipe])) as fit, dry():
        planner = Planner(fit, device_of(None, None, 2), 2, {})
        whole, gathered, layer = (
            planner.split(*each).phases["rollout"].held for each in (("ddp", 4), ("fsdp2", 4), ("fsdp2", 4, "layer"))
        )
    assert gathered["packed weights"] == whole["packed weights"] > 0 and "packed weights" not in layer


@pytest.mark.slow
def test_shards_hold_their_share_of_what_single_phases_hold_of_weights(recipe: str) -> None:
    Path("val.txt").write_text("w2 w3\n")
    words = ["--trainer.precision", "bf16-mixed", "--data.validation", "val.txt"]
    with fit_of(Recipe.read([recipe], sorted_words(words).overrides)) as fit, dry():
        planner = Planner(fit, GPUS["h100"], 4, {})
        whole, sharded = (planner.split(strategy, 8).phases for strategy in ("ddp", "fsdp2"))
        model: Any = fit.module.student.model
        blocks = [layer for layer in model.model.layers.modules() if isinstance(layer, Linear)]
    for phase, part in (("update", "update"), ("validation", "live weights, put aside")):
        assert 0 < sharded[phase].held[part] == whole[phase].held[part] // 4
    # A prompt is read once for its group, then the samples: each pass of a layer keeps its weight in bfloat16.
    casts = 2 * 2 * sum(layer.weight.numel() for layer in blocks)
    freed = whole["scoring"].held["activations"] - sharded["scoring"].held["activations"]
    assert freed == pytest.approx(casts, rel=0.1)
    # Three layers in bfloat16; embeddings, last norm and head of student and teacher in float32, and the student's gradient.
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    ends = sum(weight.numel() for weight in model.parameters()) - len(model.model.layers) * layer
    assert sharded["scoring"].held["gathered weights"] == 3 * 2 * layer + 3 * 4 * ends
    assert sharded["rollout"].held["gathered weights"] == len(model.model.layers) * 2 * layer + 4 * ends


def plan_under(recipe: str, words: list[str], devices: int = 4) -> Any:
    @contextmanager
    def planner() -> Iterator[Planner]:
        with fit_of(Recipe.read([recipe], sorted_words(words).overrides)) as fit, dry():
            yield Planner(fit, GPUS["h100"], devices, {})

    return planner()


def test_shards_of_a_student_under_lora_have_a_teacher_beside_them(recipe: str) -> None:
    with plan_under(recipe, ["--model.generator.init_args.lora.rank=2"]) as planner:
        whole, sharded = planner.split("ddp", 4), planner.split("fsdp2", 4)
        base = bytes_of(planner.step.module.teacher.model.parameters())
    assert "teacher" not in whole.always and sharded.always["teacher"] == pytest.approx(base / 4, rel=0.05)


@pytest.mark.slow
def test_weights_are_gathered_as_the_recipe_says_and_otherwise_where_that_does_not_fit(recipe: str) -> None:
    deep = f"--model.generator.init_args.path={tiny_folder(Path('deep'), num_hidden_layers=6)}"
    with plan_under(recipe, ["--trainer.strategy=fsdp2", deep]) as planner:
        rollout, layer = planner.split("fsdp2", 1), planner.split("fsdp2", 1, "layer")
        planner.device = replace(planner.device, memory=(layer.peak + 1) / ROOM)
        found, asked = planner.largest_that_fits(), planner.split("fsdp2", 4)
    assert rollout.gather == "rollout" and layer.gather == "layer"
    parts = (each.phases["rollout"].held["gathered weights"] for each in (rollout, layer))
    assert next(parts) > next(parts)
    assert found is not None and (found.strategy, found.gather, asked.gather) == ("fsdp2", "layer", "rollout")
    with plan_under(recipe, ["--model.execution.gather=layer", deep]) as planner:
        assert planner.split("fsdp2", 1).phases["rollout"].held == layer.phases["rollout"].held


def test_no_split_is_recommended_that_a_fit_refuses(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with plan_under(recipe, ["--trainer.precision=16-mixed"]) as planner:
        assert [strategy for strategy, _ in planner._strategies()] == ["ddp"]
    words = ["--devices=4", "--gpu=h100", "--trainer.strategy=fsdp2", "--trainer.precision=16-mixed"]
    assert main(["plan", "--config", recipe, *words]) == 2
    assert "expected 32-true or bf16-mixed under fsdp2, but got 16-mixed" in capsys.readouterr().err


@pytest.mark.parametrize("own", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_micro_batch_is_planned_alike_by_any_recipe(recipe: str, own: int) -> None:
    """Below the group it reads a whole prompt, and so the line has a bend there."""
    Path("train.txt").write_text("\n".join(" ".join(["w1"] * 10 + [f"w{number}"]) for number in range(8)))
    with plan_under(recipe, [f"--model.micro_batch={own}"], devices=1) as planner:
        lines = {size: planner.step.scoring(size).bytes for size in (1, 2, 8, 12)}
        exact = {size: planner.step.run_dry(size).bytes for size in lines}
        planner.device = replace(planner.device, memory=planner.split("auto", 12).peak / ROOM)
        found = planner.largest_that_fits()
    assert lines == pytest.approx(exact, rel=0.03)
    assert found is not None and found.peak <= ROOM * planner.device.memory and found.micro_batch in (8, 12)
    assert found.phases["scoring"].bytes == exact[found.micro_batch]


def test_the_longest_prompts_of_a_text_encoder_are_those_of_most_text(tmp_path: Path) -> None:
    module = SimpleNamespace(student=SimpleNamespace(prompt_positions=lambda prompts: 0))
    assert _longest(module, ["rock", "a long walk", "jazz on"], 2) == ["a long walk", "jazz on"]  # type: ignore[arg-type]


@pytest.mark.slow
def test_accumulated_batches_count_in_all_columns(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, three = (
        planned(capsys, recipe, "--gpu=h100", *more) for more in ([], ["--trainer.accumulate_grad_batches=3"])
    )
    for key in ("flops", "traffic"):
        for phase, times in (("rollout", 3), ("scoring", 3), ("update", 1)):
            assert three["asked"]["phases"][phase][key] == pytest.approx(times * one["asked"]["phases"][phase][key])
    assert three["step"]["seconds"]["rollout"] == pytest.approx(3 * one["step"]["seconds"]["rollout"])
    main(["plan", "--config", recipe, "--gpu=h100", "--trainer.accumulate_grad_batches=3"])
    assert "3 batches of 4 prompts" in capsys.readouterr().out


@pytest.mark.slow
def test_data_of_metrics_count_beside_the_libraries_of_a_cpu(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    tunes = "cfg_distill.tunes.metrics"
    metrics = {
        "quality": f"{tunes}.TuneQuality",
        "again": {"class_path": f"{tunes}.TuneQuality"},
        "real": {"class_path": f"{tunes}.TuneFactor", "init_args": {"factor": "real"}},  # it reads the same corpus
        "rests": f"{tunes}.RestShare",
    }
    logging = {"class_path": "cfg_distill.callbacks.DiversityLogging", "init_args": {"metrics": metrics}}
    words = ["--trainer.callbacks.diversity", json.dumps(logging)]
    assert planned(capsys, recipe, *words)["asked"]["always"]["data of metrics"] == TuneQuality.data_bytes > 0
    for others in ([], [*words, "--gpu", "h100"]):
        assert "data of metrics" not in planned(capsys, recipe, *others)["asked"]["always"]


def test_sizes_of_published_models_are_theirs() -> None:
    """By the numbers of their model cards and index files."""
    published = {
        "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
        "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
        "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
        "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
        "Qwen/Qwen3-8B": 8_190_735_360,
        "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
        "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    }
    for name, number in published.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(ARCHITECTURES[name]())
        assert sum(p.numel() for p in model.parameters()) == number, name


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-8B", "meta-llama/Llama-3.2-1B-Instruct"])
def test_four_characters_are_a_token_of_a_published_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    recipe = Recipe.read(["recipes/text/full_1b.yaml"], [Override.of("model.generator.init_args.path", name)])
    with fit_of(recipe) as fit:
        longest = fit.prompts[0]
        chat = f"<|im_start|>user\n{longest}<|im_end|>\n<|im_start|>assistant\n"
        tokens = fit.module.student.prompt_positions([longest])
        assert tokens == pytest.approx(len(chat) / 4, rel=0.35) and tokens > 20  # names of turns are one token each


@pytest.mark.slow
def test_a_shipped_recipe_is_planned_without_a_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    layers, width, rank = 2, 1024, 16  # the published one has 24: it takes twelve times as long
    monkeypatch.setitem(ARCHITECTURES, "facebook/musicgen-small", lambda: musicgen(layers, width, 16))
    plan = planned(capsys, "recipes/musicgen/small_lora.yaml", "--gpu", "h100")
    # 16 D^2 and six norms per layer, four tables and heads, and the last norm: Copet et al., arXiv 2306.05284.
    own = layers * (16 * width**2 + 6 * width) + 4 * (2049 + 2048) * width + 2 * width
    adapter = layers * 26 * width * rank
    assert plan["parameters"]["student"] == own + adapter and plan["parameters"]["trained"] == adapter
    assert plan["parameters"]["text encoder, codec"] == pytest.approx(110e6 + 57e6, rel=0.01)
    assert plan["asked"]["always"]["embedders"] == pytest.approx(1.1e9, rel=0.05)
    cache = plan["asked"]["phases"]["rollout"]["held"]["key-value cache"]
    assert cache == pytest.approx(32 * 503 * layers * 2 * width * 2, rel=0.3)  # bfloat16, rooms and the text on top
    assert plan["fits"] and any("not on this machine" in note for note in plan["notes"])


def test_the_floor_is_the_larger_of_two_times_part_by_part() -> None:
    device = Device("", 1.0, half=100.0, single=10.0, bandwidth=5.0)
    assert device.seconds([(200.0, 5.0), (100.0, 50.0)], torch.bfloat16) == 2 + 10
    assert device.seconds([(200.0, 5.0)], torch.float32) == 20
    assert all(each.half >= each.single > 0 and each.memory >= 16e9 for each in GPUS.values())


OWN = """
from cfg_distill.generators import Generator

class Mine(Generator):
    def problems(self, context=None): return []
    def load(self): raise AssertionError("a plan must not load")
    max_positions = load_weights = encode = prefill = step = predictions = decode = save = None
"""

ENGINE = "{class_path: cfg_distill.sampling.VLLM, init_args: {url: 'http://127.0.0.1:9'}}"

BAD: dict[str, tuple[list[str], list[str]]] = {
    "no recipe": ([], ["Option `--config`", "missing"]),
    "no such file": (["--config", "nothing.yaml"], ["nothing.yaml"]),
    "no such GPU": (["--config", "recipe.yaml", "--gpu", "h1000"], ["Option `--gpu`", "Did you mean `h100`?"]),
    "no memory": (["--config", "recipe.yaml", "--memory", "-1"], ["Option `--memory`", "above 0"]),
    "no device": (["--config", "recipe.yaml", "--devices", "0"], ["Option `--devices`", "at least 1"]),
    "not a number": (["--config", "recipe.yaml", "--devices", "two"], ["--devices"]),
    "more devices than there are": (["--config", "recipe.yaml", "--devices", "4096"], ["Option `--devices`", "`--memory`"]),
    "shards that are not ours": (
        ["--config", "recipe.yaml", "--trainer.strategy", "fsdp"], ["Key `trainer.strategy`", "fsdp2, but got fsdp."],
    ),
    "a class that shards otherwise": (
        ["--config", "recipe.yaml", "--trainer.strategy.class_path", "lightning.pytorch.strategies.ModelParallelStrategy"],
        ["Key `trainer.strategy.class_path`", "FSDP2, but `lightning.pytorch.strategies.ModelParallelStrategy` is none."],
    ),
    "an engine without an address": (
        ["--config", "recipe.yaml", "--model.sampler", ENGINE.replace("http://", "")],
        ["Key `model.sampler.init_args.url`", "expected the address"],
    ),
    "no strategy": (["--config", "recipe.yaml", "--trainer.strategy", "magic"], ["Key `trainer.strategy`", "magic"]),
    "one process too many": (
        ["--config", "recipe.yaml", "--devices", str(most_processes() + 1)], ["Option `--devices`", "or less"],
    ),
    "several at once": (
        ["--config", "recipe.yaml", "--gpu", "x", "--model.sampling.samples", "0", "--model.guidanc.scale", "2"],
        ["Option `--gpu`", "model.guidanc", "2 problems"],
    ),
    "another module": (["--config", "recipes/tunes/encoder.yaml"], ["Key `model`", "CFGDistillation"]),
    "unknown model": (
        ["--config", "recipe.yaml", "--model.generator.init_args.path", "nobody/nothing"],
        ["model.generator.init_args.path", "facebook/musicgen-small"],
    ),
    "a model of an unknown type": (
        ["--config", "recipe.yaml", "--model.generator.init_args.path", "llamma"],
        [
            "Key `model.generator.init_args.path`: expected a causal language model (model_type gpt2, llama, ",
            " that transformers ",
            "), but `llamma` is of model_type llamma by its config.json. Did you mean `llama`? Correct it, name a causal",
        ],
    ),
    "a model without a type": (
        ["--config", "recipe.yaml", "--model.generator.init_args.path", "none", "--model.sampling.samples", "0"],
        ["2 problems", "model.sampling.samples", "init_args.path`: expected", "`none` has no model_type in its config.json."],
    ),
    "a model of another kind": (
        [
            "--config", "recipe.yaml", "--model.generator",
            "{class_path: cfg_distill.generators.MusicGen, init_args: {path: llamma}}",
        ],
        ["(model_type musicgen or musicgen_melody), but `llamma` is of model_type llamma by its config.json. Correct it"],
    ),
    "a generator of one's own": (
        ["--config", "recipe.yaml", "--model.generator", "mine.Mine"],
        ["Key `model.generator`", "known architecture", "Mine"],
    ),
    "a sample that is too long": (
        ["--config", "recipe.yaml", "--model.sampling.max_new_tokens", "999"],
        ["model.sampling.max_new_tokens"],
    ),
    "a prompt that is too long": (
        ["--config", "recipe.yaml", "--data.train", "long.txt"],
        ["Key `data.init_args.train`: `long.txt`: Prompt `w1 w1", "Shorten it."],
    ),
    "an encoder cut short": (
        [
            "--config", "recipe.yaml", "--trainer.callbacks.diversity",
            "{class_path: cfg_distill.callbacks.DiversityLogging, init_args: {metrics: {pairs: {class_path:"
            " cfg_distill.metrics.PairwiseCosineDiversity, init_args: {embedder: {class_path:"
            " cfg_distill.embedders.TransformerEmbedder, init_args: {path: encoder}}}}}}}",
        ],
        ["`encoder/model.safetensors` cannot be read as safetensors", "Copy it again"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told(
    name: str,
    recipe: str,
    folder: Path,
    tiny_model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (folder / "mine.py").write_text(OWN)
    (folder / "long.txt").write_text("w1 " * 500)
    for kind, own in (("llamma", {"model_type": "llamma"}), ("none", {"model_type": None})):
        shutil.copytree(tiny_model, folder / kind)
        config = json.loads((folder / kind / "config.json").read_text()) | own
        (folder / kind / "config.json").write_text(
            json.dumps({key: config[key] for key in config if config[key] is not None})
        )
    (folder / "encoder").mkdir()
    (folder / "encoder" / "model.safetensors").write_bytes((Path(tiny_model) / "model.safetensors").read_bytes()[:-9])
    words, told = BAD[name]
    assert main(["plan", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for part in told:
        assert part in shown.err


def test_devices_by_their_numbers_are_counted_as_lightning_counts_them() -> None:
    for given, expected in (("0,1", 2), ("3,", 1), ([0, 1, 2], 3), (4, 4)):
        assert Recipe.read(["recipes/tunes/quality.yaml"], {"trainer.devices": given}).devices == expected, given


def test_an_unknown_gpu_is_measured_in_both_forms_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    found = SimpleNamespace(name="An unknown GPU", total_memory=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: found)
    monkeypatch.setattr(
        machines, "_measured_rate", lambda device, dtype, size: asked.append(dtype) or float(len(asked))
    )
    monkeypatch.setattr(machines, "_measured_bandwidth", lambda device: 1.0)
    device = machines._here(1)
    assert asked == [torch.bfloat16, torch.float32] and (device.half, device.single) == (1.0, 2.0)
