"""How fast a device samples and trains: MusicGen-small and SmolLM2-135M at real size.

MusicGen's weights are random, SmolLM2's where its own are not installed: both take the same time. No sample ends early, so
that every run does the same work.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import real_size
import torch
from measure import PROMPTS
from phases import Skip, Wrong, device_of_trainer
from static import StaticDecoder
from transformers import EncodecConfig, LlamaConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config

from cfg_distill import CFGDistillation
from cfg_distill.generators import Generator, MusicGen
from cfg_distill.guidance import Guidance
from cfg_distill.losses import ReverseKL
from cfg_distill.planning.machines import gpu_named
from cfg_distill.sampling import Sampling, rollout

SCALE = 3.0
LONG = 8.0
"""Seconds of runs after which no further run is made: what takes long is measured once."""
WORDS = ["80s synth pop", "calm jazz piano", "loud rock", "piano", "pop", "jazz", "calm rock", "80s rock"]


@dataclass(frozen=True)
class Case:
    """A model and the batch of its step.

    Attributes:
        name: in words.
        make: the generator, by device and settings.
        prompts: B of them.
        group: G.
        length: T, tokens or frames.
        micro_batch: samples scored at once.
        is_tiny: run everything once, and cold: it tests this script.
    """

    name: str
    make: Callable[..., Generator]
    prompts: list[str]
    group: int
    length: int
    micro_batch: int
    is_tiny: bool = False

    @property
    def sampling(self) -> Sampling:
        return Sampling(samples=self.group, max_new_tokens=self.length)

    def tokens(self, generator: Generator) -> int:
        """Tokens of a rollout, all codebooks counted."""
        return len(self.prompts) * self.group * self.length * generator.num_codebooks


def cases(tiny: bool) -> list[Case]:
    """The two models; small ones to test this script."""
    if tiny:
        return [
            Case(
                "tiny causal",
                partial(real_size.smollm2, config=_tiny_llama()),
                ["w1 w2 w3", "w4"],
                2,
                12,
                2,
                is_tiny=True,
            ),
            Case(
                "tiny MusicGen",
                partial(real_size.musicgen, "small", config=_tiny_musicgen()),
                WORDS[:2],
                2,
                12,
                2,
                is_tiny=True,
            ),
        ]
    weights = "" if real_size.has_smollm2() else ", random weights"
    return [
        Case(f"SmolLM2-135M, 8 x 16 x 256{weights}", real_size.smollm2, PROMPTS, 16, 256, 32),
        Case("MusicGen-small, 8 x 4 x 10 s, random weights", partial(real_size.musicgen, "small"), WORDS, 4, 500, 8),
    ]


def _tiny_llama() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=300, max_position_embeddings=64,
    )  # fmt: skip


def _tiny_musicgen() -> MusicgenConfig:
    text = T5Config(vocab_size=16, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    codec = EncodecConfig(
        sampling_rate=3200, audio_channels=1, normalize=False, target_bandwidths=[2.4], upsampling_ratios=[8, 4],
        num_filters=4, hidden_size=8, codebook_size=64, codebook_dim=8, num_residual_layers=1, num_lstm_layers=1,
        use_causal_conv=False, chunk_length_s=None, overlap=None,
    )  # fmt: skip
    own = MusicgenDecoderConfig(
        vocab_size=64, max_position_embeddings=64, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2,
        hidden_size=16, num_codebooks=4, pad_token_id=64, bos_token_id=64,
    )  # fmt: skip
    return MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=own)


def phases(device: str, tiny: bool) -> Iterator[tuple[str, float, Callable[[], dict[str, Any]]]]:
    """Title, seconds below which it does not begin, and the measurement. What compiles comes last, since it takes longest."""
    own = partial(products, device, tiny)
    yield "products of the device", 10, own
    for case in cases(tiny):
        yield f"rollouts, {case.name}", 60, partial(rollouts, case, device)
        yield f"CUDA graphs, {case.name}", 40, partial(static_rollouts, case, device, compiled=False)
        yield f"step, {case.name}", 60, partial(step, case, device)
    for case in cases(tiny):
        yield f"compiled, {case.name}", 90, partial(static_rollouts, case, device, compiled=True)


class _Clock:
    """Seconds, when everything that was asked of the device is done."""

    def __init__(self, device: str, is_tiny: bool) -> None:
        self.is_cuda, self.is_tiny = device.startswith("cuda"), is_tiny

    def __call__(self) -> float:
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _median_seconds(run: Callable[[], Any], clock: _Clock, runs: int = 3, is_warm: bool = False) -> float:
    """After a warm-up, unless everything has run before; of fewer runs where they take long."""
    if not (is_warm or clock.is_tiny):
        run()
    taken: list[float] = []
    while not taken or (len(taken) < runs and sum(taken) < LONG and not clock.is_tiny):
        began = clock()
        run()
        taken.append(clock() - began)
    return statistics.median(taken)


def _forget(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> float | None:
    """GB at the peak since :func:`_forget`; None on a CPU, whose process has one peak for everything."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None


# Measurements


def products(device: str, tiny: bool) -> dict[str, Any]:
    """What the device multiplies and reads in a second: utilisation is told against it, and against its data sheet."""
    clock, size = _Clock(device, tiny), 256 if tiny else 8192
    found = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[f"TFLOP/s, {name}"] = 2e-12 * size**3 / _median_seconds(partial(torch.mm, one, other), clock, 5)
    numbers = torch.ones(2**20 if tiny else 2**28, device=device)
    found["GB/s, read"] = numbers.numel() * 4e-9 / _median_seconds(numbers.sum, clock, 5)
    return found


@torch.no_grad()
def rollouts(case: Case, device: str) -> dict[str, Any]:
    """Tokens per second of rollouts and of transformers' ``generate``; a finished model in bfloat16, and one that trains."""
    found: dict[str, Any] = {}
    clock = _Clock(device, case.is_tiny)
    _forget(device)
    generator = case.make(device=device, dtype="bfloat16")
    tokens = case.tokens(generator)
    ways: dict[str, Callable[[], Any]] = {
        "rollout": lambda: rollout(generator, case.prompts, case.sampling),
        "rollout, guided": lambda: rollout(generator, case.prompts, case.sampling, Guidance(SCALE)),
        "generate": lambda: _generate(generator, case, 1.0),
        "generate, guided": lambda: _generate(generator, case, SCALE),
    }
    for name, way in ways.items():
        found[f"{name}: tokens/s"] = tokens / _median_seconds(way, clock, 2)
    found["rollout by generate"] = found["rollout: tokens/s"] / found["generate: tokens/s"]
    found["rollout by generate, guided"] = found["rollout, guided: tokens/s"] / found["generate, guided: tokens/s"]
    found["student by guided base (generate)"] = found["rollout: tokens/s"] / found["generate, guided: tokens/s"]
    found["peak GB"] = _peak(device)
    del generator
    generator = case.make(device=device)
    for pack in (True, False):
        length = max(case.length // 4, 1)  # a share of the samples shows the ratio
        sampling = Sampling(samples=case.group, max_new_tokens=length, pack_weights=pack)

        def mixed(sampling: Sampling = sampling) -> None:
            with torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False):
                rollout(generator, case.prompts, sampling)

        found[f"float32 weights, bf16-mixed, {'packed' if pack else 'cast at every position'}: tokens/s"] = (
            tokens * length / case.length / _median_seconds(mixed, clock, 1)
        )
    return found


def _generate(generator: Generator, case: Case, scale: float) -> None:
    """The same samples by transformers: each prompt repeated for its group, guidance by its own processor, no codec."""
    repeated = [prompt for prompt in case.prompts for _ in range(case.group)]
    settings: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    if scale != 1:
        settings["guidance_scale"] = scale
    if not isinstance(generator, MusicGen):
        encoded = generator.encode(repeated).tensors
        if scale != 1:
            negative = generator.encode([None] * len(repeated)).tensors
            settings |= {
                "negative_prompt_ids": negative["input_ids"],
                "negative_prompt_attention_mask": negative["attention_mask"],
            }
        ends: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 0, "min_new_tokens": case.length}
        generator.model.generate(**encoded, **settings, **ends, max_new_tokens=case.length)  # type: ignore[operator]
        return
    whole = generator.shared.to(generator.device).whole
    whole.decoder = generator.model
    whole.to(generator.model.dtype)  # transformers casts nothing between text encoder and decoder
    whole.audio_encoder.decode = lambda codes, **rest: type("Sound", (), {"audio_values": codes})
    pad = generator.pad_token
    try:
        ids = generator.text_tokenizer(repeated, padding=True, return_tensors="pt")
        inputs = {name: ids[name].to(generator.device) for name in ("input_ids", "attention_mask")}
        tokens = {"decoder_start_token_id": pad, "pad_token_id": pad, "bos_token_id": pad}
        whole.generate(**inputs, **settings, **tokens, max_new_tokens=case.length + max(generator.delays))
    finally:
        del whole.decoder, whole.audio_encoder.decode
        whole.float()


@torch.no_grad()
def static_rollouts(case: Case, device: str, compiled: bool) -> dict[str, Any]:
    """A static cache, replayed as a CUDA graph; its greedy tokens are those of a rollout."""
    is_cuda = device.startswith("cuda")
    if compiled and not is_cuda:
        raise Skip("compilation is measured on a GPU only")
    _forget(device)
    clock = _Clock(device, case.is_tiny)
    found: dict[str, Any] = {}
    try:
        found["share of tokens that differ from a rollout's"] = _same_tokens(case, device, captured=is_cuda)
    except (TypeError, AttributeError) as error:  # StaticCache of another release
        raise Skip(f"this transformers has a StaticCache of another form: {error}") from error
    generator = case.make(device=device, dtype="bfloat16")
    tokens = case.tokens(generator)
    if compiled:
        torch._dynamo.reset()  # few versions of one function are kept: those of another model would count
    for guidance in (None, Guidance(SCALE)):
        decoder = StaticDecoder(generator, case.sampling, guidance, compiled)  # type: ignore[arg-type]
        for name in ("static cache", "CUDA graph") if is_cuda else ("static cache",):
            decoder.captured = name == "CUDA graph"
            decoder(case.prompts)  # prepares, compiles or captures
            key = f"{'compiled, ' if compiled else ''}{name}{', guided' if guidance else ''}: tokens/s"
            found[key] = tokens / _median_seconds(lambda own=decoder: own(case.prompts), clock, 2, is_warm=True)
        del decoder
    found["peak GB"] = _peak(device)
    return found


def _same_tokens(case: Case, device: str, captured: bool) -> float:
    """The share of tokens that a static cache draws otherwise than a rollout, in float32, with guidance and without.

    The likeliest tokens are the same. Of drawn ones few differ by rounding: where many unlikely tokens lie side by side, a draw
    falls on the next one, and then the rest of the sample is another one. Of a wrong mask or position nearly all differ.
    """
    generator = case.make(device=device)
    share = 0.0
    for temperature, seeds, most in ((0.0, (0,), 0.05), (1.0, (0, 1), 0.3)):
        sampling = Sampling(min(case.group, 4), min(case.length, 20), temperature)
        differs = []
        for guidance in (None, Guidance(SCALE)):
            decoder = StaticDecoder(generator, sampling, guidance, captured=captured)  # type: ignore[arg-type]
            for seed in seeds:
                expected = rollout(generator, case.prompts[:2], sampling, guidance, seed=seed).tokens_NKT
                differs.append((decoder(case.prompts[:2], seed) != expected).float().mean())
        if (share := float(torch.stack(differs).mean())) > most:
            raise Wrong(f"temperature {temperature:g}: a static cache draws {share:.0%} other tokens than a rollout")
    return share


class _Timed(L.Callback):
    """Seconds of each step."""

    def __init__(self, clock: _Clock, seconds: dict[str, float]) -> None:
        self.clock, self.inside, self.steps = clock, seconds, list[float]()

    def on_train_batch_start(self, *rest: Any) -> None:
        self.inside.clear()
        self.began = self.clock()

    def on_train_batch_end(self, *rest: Any) -> None:
        self.steps.append(self.clock() - self.began)


def step(case: Case, device: str) -> dict[str, Any]:
    """The second of two training steps of all weights under bf16-mixed: seconds by phase, utilisation, peak memory."""
    _forget(device)
    clock, seconds = _Clock(device, case.is_tiny), defaultdict[str, float](float)
    generator = case.make(device=device)
    module = CFGDistillation(
        generator, {"kl": ReverseKL()}, Guidance(SCALE), case.sampling, micro_batch=case.micro_batch,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-6), measure_gradients_every=0,
    )  # fmt: skip
    module.configure_model()
    assert module.teacher is not None
    inside: list[float] = []

    def watch(name: str, owner: Any, method: str) -> None:
        plain = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            inside.append(0.0)
            try:
                return plain(*args, **kwargs)
            finally:
                took = clock() - began
                seconds[name] += took - inside.pop()
                if inside:
                    inside[-1] += took

        setattr(owner, method, timed)

    for name, owner, method in (
        ("rollout", module, "rollout"), ("codec", generator, "decode"), ("student forward", generator, "predictions"),
        ("teacher", module.teacher, "predictions"), ("loss and backward", module, "training_step"),
    ):  # fmt: skip
        watch(name, owner, method)
    timer = _Timed(clock, seconds)
    trainer = L.Trainer(
        **device_of_trainer(device), precision="bf16-mixed", max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[timer],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([case.prompts] * 2, batch_size=None))
    whole = timer.steps[-1]
    found: dict[str, Any] = {f"{name}, s": value for name, value in seconds.items()}
    found["optimiser and rest, s"] = whole - sum(seconds.values())
    found["step, s"] = whole
    found["TFLOP of the step"] = flops = 1e-12 * step_flops(generator, case)
    found["TFLOP/s"] = flops / whole
    if rate := _published_rate(device):
        found["model FLOP utilisation, of the data sheet's bfloat16"] = flops * 1e12 / whole / rate
    found["peak GB"] = _peak(device)
    return found


def step_flops(generator: Generator, case: Case) -> float:
    """FLOPs of a step by the usual rule, attention left out: two per parameter and position of a forward pass.

    A rollout makes one pass, the teacher two, the student one and a backward pass of two (Kaplan et al., arXiv 2001.08361). All
    parameters count but the tables of tokens, which multiply nothing; a table that is the head, too, counts.
    """
    head = generator.model.get_output_embeddings() if not isinstance(generator, MusicGen) else None
    tables = {
        id(layer.weight): layer.weight.numel()
        for layer in generator.model.modules()
        if isinstance(layer, torch.nn.Embedding) and (head is None or layer.weight is not head.weight)
    }
    parameters = sum(weight.numel() for weight in generator.model.parameters()) - sum(tables.values())
    positions = len(case.prompts) * case.group * (case.length + max(generator.delays))
    return 2.0 * parameters * positions * (1 + 2 + 1 + 2)


def _published_rate(device: str) -> float:
    """FLOPs per second of the data sheet; 0 of a device that is not known."""
    if not device.startswith("cuda"):
        return 0.0
    known = gpu_named(torch.cuda.get_device_name(device))
    return 0.0 if known is None else known.half
