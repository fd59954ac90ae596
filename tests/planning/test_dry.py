"""A dry run against the same code with values: activations, cache and FLOPs of tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer
from tiny_musicgen import tiny_musicgen
from tiny_songs import YUE_PROMPT, tiny_yue
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cfg_distill import CFGDistillation
from cfg_distill.generators import CausalLM, LoRA, MusicGen, Prompt, YuE
from cfg_distill.generators.growing_cache import ROOM, GrowingLayer
from cfg_distill.guidance import Guidance
from cfg_distill.losses import CrossEntropy, ReverseKL
from cfg_distill.planning.dry import Ledger, dry
from cfg_distill.planning.fit import Fit
from cfg_distill.planning.step import DryStep
from cfg_distill.sampling import Codes, Sampling

WORDS = ["rock", "calm jazz"]
TEXTS = ["w1 w2 w3 w4", "w5 w6"]


@pytest.fixture(scope="module")
def musicgen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_musicgen(tmp_path_factory.mktemp("musicgen") / "model")


def module(generator: Any, length: int = 20) -> CFGDistillation:
    return CFGDistillation(generator, {"kl": ReverseKL()}, Guidance(3.0), Sampling(samples=4, max_new_tokens=length))


def fit(made: CFGDistillation, prompts: list[Any], precision: str = "32-true", averaged: bool = False) -> Fit:
    return Fit("tiny", made, prompts, 0, precision, "auto", 1, averaged, {}, data=0, notes=[])


def saved_bytes(model: Any, run: Any) -> int:
    """Bytes of the storages that autograd saves, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", ["causal", "musicgen"])
def test_activations_are_those_that_autograd_saves(kind: str, mixed: bool, tiny_model: str, musicgen: str) -> None:
    prompts = TEXTS if kind == "causal" else WORDS

    def generator() -> Any:
        return CausalLM(tiny_model) if kind == "causal" else MusicGen(musicgen)

    own = generator().load()
    _ = own.predictions(prompts, *cells(own, 2))  # what is computed once
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        saved = saved_bytes(own, lambda: own.predictions(prompts, *cells(own, 8)))
    with dry(), Ledger() as ledger:
        planned = generator().load()
        _ = planned.predictions(prompts, *cells(planned, 2))
        given = cells(planned, 8)
        before = ledger.begin()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
            result = planned.predictions(prompts, *given)
        kept = ledger.live - before
        del result
    assert kept == pytest.approx(saved, rel=0.1)


def cells(generator: Any, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens_NKT = torch.full((rows, generator.num_codebooks, 20 + max(generator.delays)), 4)
    return tokens_NKT, torch.ones_like(tokens_NKT, dtype=torch.bool)


@pytest.mark.parametrize("trained", [False, True])
def test_a_view_of_a_weight_takes_no_memory(trained: bool) -> None:
    """A layer multiplies by a view of its weight, which was there before."""
    with dry():
        layer, rows = (
            torch.nn.Linear(1000, 1000, bias=False).requires_grad_(trained),
            torch.empty(3, 1000, requires_grad=True),
        )
        with Ledger() as ledger:
            before = ledger.begin()
            made = [layer(rows), layer.weight.T, layer.weight[3:]]
            assert ledger.live - before == ledger.peak - before == made[0].nbytes == 12_000


def test_flops_are_those_of_the_step_with_values(tiny_model: str) -> None:
    own = module(CausalLM(tiny_model))
    own.configure_model()
    tokens_NKT, mask_NKT = cells(own.student, 8)
    own.student.predictions(TEXTS, tokens_NKT, mask_NKT)
    with FlopCounterMode(display=False) as counter:  # counts no product of oneDNN, which the tiny weights do not use
        own.student.predictions(TEXTS, tokens_NKT, mask_NKT).states_NTD.sum().backward()
    with dry(), Ledger() as ledger:
        planned = CausalLM(tiny_model).load()
        given = cells(planned, 8)
        planned.predictions(TEXTS, *given)
        ledger.begin()
        planned.predictions(TEXTS, *given).states_NTD.sum().backward()
        products = ledger.flops
    assert products == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_what_every_phase_holds_is_the_sum_of_its_formulas(tiny_model: str, musicgen: str) -> None:
    number = sum(p.numel() for p in CausalLM(tiny_model).load().model.parameters())
    with dry():
        step = DryStep(fit(module(CausalLM(tiny_model)), TEXTS, averaged=True), on_cpu=True)
        parts = step.always
    expected = {"gradients": 4 * number, "averages": 4 * number, "text encoder, codec": 0}
    assert {name: parts[name] for name in expected} == expected
    assert parts["student"] == parts["teacher"] == pytest.approx(4 * number, rel=0.01)  # and the table of positions
    assert parts["optimiser"] == pytest.approx(8 * number, rel=0.01)  # two moments, and a count per parameter
    with dry():
        step = DryStep(fit(module(MusicGen(musicgen, lora=LoRA(rank=2))), WORDS), on_cpu=True)
        parts, numbers = step.always, step.parameters
    assert parts["teacher"] == 0 and parts["text encoder, codec"] == 4 * numbers["text encoder, codec"] > 0
    assert parts["gradients"] == 4 * numbers["trained"] < parts["student"] / 5


def cache_of_rollout(folder: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cache at the end of a real rollout of 40 tokens."""
    caches: list[Any] = []
    plain = CausalLM.step

    def step(self: Any, state: Any, tokens_NK: torch.Tensor) -> Any:
        caches[:] = [state.cache]
        return plain(self, state, tokens_NK)

    own = module(CausalLM(folder), length=40)
    own.configure_model()
    own.student.end_tokens = ()
    with monkeypatch.context() as patched:
        patched.setattr(CausalLM, "step", step)
        own.rollout(TEXTS)
    return caches[0]


def test_the_cache_of_a_rollout_is_that_of_the_real_one(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of_rollout(tiny_model, monkeypatch)
    layers = [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]
    real = sum(room.untyped_storage().nbytes() for layer in layers for room in layer._rooms)
    with dry():
        planned = DryStep(fit(module(CausalLM(tiny_model), length=40), TEXTS), on_cpu=True).rollout(TEXTS)
    assert planned.held["key-value cache"] == real
    assert len(planned.work) == 40


def folder_of(folder: Path, kind: str, **settings: Any) -> str:
    """A tiny model of a kind with the words of the others."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    common = {
        "vocab_size": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    config = CONFIG_MAPPING[kind](**sizes, **common, bos_token_id=1, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("window", [6, 16, 100])
def test_a_sliding_window_grows_until_it_is_full(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was counted as long as the prompt. Of the widest window all positions are kept."""
    folder = folder_of(tmp_path / "mistral", "mistral", sliding_window=window)
    cache = cache_of_rollout(folder, monkeypatch)
    real = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
    with dry():
        planned = DryStep(fit(module(CausalLM(folder), length=40), TEXTS), on_cpu=True).rollout(TEXTS)
    rows = len(TEXTS) * 4
    assert real <= planned.held["key-value cache"] <= real + 2 * 2 * rows * 16 * 4  # a position more, in both layers


@pytest.mark.parametrize(
    ("kind", "settings", "is_linear"),
    [
        ("mistral", {}, True),
        ("gemma2", {"final_logit_softcapping": 0.01}, False),
        ("gemma2", {"final_logit_softcapping": None}, True),
        ("cohere", {"logit_scale": 0.5}, False),
    ],
)
def test_logits_that_a_fit_computes_whole_are_planned_whole(
    tmp_path: Path, kind: str, settings: dict[str, Any], is_linear: bool
) -> None:
    folder = folder_of(tmp_path / "model", kind, **settings)
    assert CausalLM(folder).load()._linear_head == is_linear
    with dry():
        step = DryStep(fit(module(CausalLM(folder)), TEXTS), on_cpu=True)
    assert step.module.student._linear_head == step.module.teacher._linear_head == is_linear


def test_under_a_conditioner_each_sample_reads_its_prompt(tiny_model: str) -> None:
    def made(conditioner: Any) -> tuple[Any, Any]:
        own = module(CausalLM(tiny_model, chat_template=False))
        own.conditioner = conditioner
        with dry():
            step = DryStep(fit(own, [" ".join(["w1"] * 30)] * 2), on_cpu=True)
            return step.rollout(step.fit.prompts), step.scoring(step.fit.micro_batch)

    (plain, scored), (labelled, scored_labelled) = made(None), made(Codes(template="{prompt} w{label}"))
    assert labelled.work[0][0] > 3.5 * plain.work[0][0]  # four samples a prompt
    assert scored_labelled.held["activations"] > 1.4 * scored.held["activations"]


def test_a_guided_rollout_has_the_negative_prompts_of_the_model(tmp_path: Path) -> None:
    """YuE keeps the lyrics of a prompt beside the negative text: its negative branch is the longer one here."""
    prompts, guidance = [Prompt("rock", **YUE_PROMPT)], Guidance(3.0, negative="w" * 100)

    def made() -> CFGDistillation:
        sampling = Sampling(samples=4, max_new_tokens=20)
        losses = {"ce": CrossEntropy()}
        return CFGDistillation(YuE(folder), losses, guidance, sampling, off_policy=True, allow_no_teacher=True)

    folder = tiny_yue(tmp_path / "yue")
    own = made()
    own.configure_model()
    longest = own.student.prompt_positions(own.student.negatives(prompts, guidance))
    assert longest > own.student.prompt_positions([prompts[0], guidance.negative])
    with dry():
        planned = DryStep(fit(made(), prompts), on_cpu=True).rollout(prompts)
    config = own.student.model.config
    head_dim = config.hidden_size // config.num_attention_heads
    per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
    rows, room = 2 * own.sampling.samples, longest + 1 + ROOM
    assert planned.held["key-value cache"] == rows * per_position * room


@pytest.fixture(autouse=True)
def nothing_stays_fake() -> Iterator[None]:
    """A dry run leaves no tensor without values behind."""
    yield
    assert float(torch.ones(2).sum()) == 2.0


def test_folders_are_read_as_far_as_their_config(tiny_model: str, tmp_path: Path) -> None:
    copied = tmp_path / "model"
    copied.mkdir()
    for file in Path(tiny_model).iterdir():
        if file.suffix == ".json":
            (copied / file.name).write_bytes(file.read_bytes())
    (copied / "model.safetensors").write_bytes(b"no weights")
    with dry():
        assert sum(p.numel() for p in CausalLM(str(copied)).load().model.parameters()) > 1000
