"""MusicGen at the sizes of its published checkpoints, with random weights; and what training one takes, computed.

    python tests/benchmarks/musicgen_sizes.py        prints the tables of docs/musicgen.md

Widths and depths are those of the ``config.json`` of facebook/musicgen-small, -medium, -large (and -stereo-, -melody, which
are built alike). Their text encoder is T5-base, their codec EnCodec at 32 kHz and 50 frames a second.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_musicgen import tiny_tokenizer

from cfg_distill.generators import MusicGen
from cfg_distill.generators.linear import use_products
from cfg_distill.generators.musicgen_shared import Shared

GB = 1e9
FRAMES_A_SECOND = 50
T5_AND_CODEC = 110e6 + 57e6  # parameters, float32, frozen and shared


@dataclass(frozen=True)
class Size:
    """A decoder: layers, width D, heads; the feed-forward is 4 D wide; K codebooks of 2048 tokens."""

    layers: int
    width: int
    heads: int
    codebooks: int = 4

    @property
    def parameters(self) -> int:
        """16 D^2 a layer (self and cross attention 4 each, feed-forward 8), its three norms, and K embeddings and heads."""
        layer = 16 * self.width**2 + 6 * self.width
        return self.layers * layer + self.codebooks * (2049 + 2048) * self.width + 2 * self.width

    def adapter(self, rank: int) -> int:
        """A LoRA on all linear layers but the heads: (inputs + outputs) R each."""
        return self.layers * (8 * 2 + 2 * 5) * self.width * rank


SIZES = {
    "small": Size(24, 1024, 16),
    "medium": Size(48, 1536, 24),
    "large": Size(48, 2048, 32),
    "stereo-small": Size(24, 1024, 16, codebooks=8),
    "stereo-large": Size(48, 2048, 32, codebooks=8),
}


@dataclass(frozen=True)
class Memory:
    """What one training step holds, in bytes. The phases of a step follow each other, so that the peak is
    ``always + max(rollout, scoring)``."""

    always: float
    rollout: float
    scoring: float

    @property
    def peak(self) -> float:
        return self.always + max(self.rollout, self.scoring)


def memory(
    size: Size,
    seconds: float,
    rows: int,
    micro_batch: int = 0,
    rank: int = 0,
    weight_bytes: int = 4,
    mixed: bool = False,
    averaged: bool = False,
) -> Memory:
    """The memory of a step from what must be there. Fragmentation, library workspace and the codec's decoding come on top.

    Always: student P, teacher P (none with LoRA, which shares it), gradient and two moments of AdamW for what is trained,
    its float32 average under StudentEMA, T5 and codec in float32.

    Rollout: keys and values of all rows, 2 D a layer and position; a copy of the layers' float32 weights as decoding reads
    them fastest (``pack_weights``), which under bf16-mixed is the half of them.

    Scoring: what autograd keeps of a micro-batch, a layer and position. In float32 88 D bytes: three norms' inputs (12 D) and
    outputs (12 D), queries, keys and values (12 D), the query across (4 D), two attention outputs before and after their
    heads are joined (16 D), and 4 D numbers before and after the activation (32 D). Under bf16-mixed 50 D: the norms' inputs
    stay float32, all else is half; and casts of the layers' weights live as long as the graph.

    Args:
        size: the decoder.
        seconds: of a clip.
        rows: B * G samples of a step and device.
        micro_batch: ``model.micro_batch``; 0 for all rows.
        rank: of a LoRA; 0 trains all weights.
        weight_bytes: of a weight: 4 for float32, 2 for bfloat16.
        mixed: whether the precision is bf16-mixed.
        averaged: whether StudentEMA keeps an average.
    """
    positions = seconds * FRAMES_A_SECOND + 3
    work_bytes = 2 if mixed else weight_bytes
    trained = size.adapter(rank) if rank else size.parameters
    trained_bytes = 4 if rank else weight_bytes
    weights = size.parameters * weight_bytes + trained * trained_bytes
    state = trained * (3 * trained_bytes + 4 * averaged)
    cache = rows * positions * size.layers * 2 * size.width * work_bytes
    kept = (micro_batch or rows) * positions * size.layers * size.width * (50 if mixed else 22 * work_bytes)
    of_layers = 16 * size.layers * size.width**2
    copies = of_layers * work_bytes if weight_bytes == 4 else 0
    casts = of_layers * work_bytes if weight_bytes == 4 and mixed else 0
    return Memory(weights + state + T5_AND_CODEC * 4, cache + copies, kept + casts)


# Random weights at real size


def configuration(size: Size) -> MusicgenConfig:
    channels = 2 if size.codebooks == 8 else 1
    decoder = MusicgenDecoderConfig(
        num_hidden_layers=size.layers, hidden_size=size.width, ffn_dim=4 * size.width, num_attention_heads=size.heads,
        num_codebooks=size.codebooks, audio_channels=channels, vocab_size=2048, max_position_embeddings=2048,
    )  # fmt: skip
    text = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
    codec = EncodecConfig(
        sampling_rate=32000, audio_channels=1, normalize=False, chunk_length_s=None, overlap=None,
        target_bandwidths=[2.2], upsampling_ratios=[8, 5, 4, 4], num_filters=64, codebook_size=2048, codebook_dim=128,
        norm_type="weight_norm", use_causal_conv=False,
    )  # fmt: skip
    return MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)


def real_size(name: str, device: str = "cpu", **settings: Any) -> MusicGen:
    """The generator of a published size, its weights random: nothing is downloaded or written."""
    generator = MusicGen(f"facebook/musicgen-{name}", **settings)
    config = configuration(SIZES[name])
    generator.config = config
    with torch.device(device):
        torch.manual_seed(0)
        whole: Any = MusicgenForConditionalGeneration(config)
    generator.model = whole.decoder.to(getattr(torch, generator.dtype))
    generator.text_tokenizer = tiny_tokenizer()
    generator.shared = Shared(whole, generator.text_tokenizer, generator.path, None)
    if generator.lora is not None:
        generator.lora.inject(generator.model)
    use_products(generator.model)
    return generator


def tables() -> str:
    """The computed rows of the documentation, in GB of 10^9 bytes, under bf16-mixed precision and with StudentEMA."""
    header = [
        "decoder",
        "trained",
        "weights",
        "clip",
        "samples",
        "`micro_batch`",
        "always",
        "rollout",
        "scoring",
        "peak",
    ]
    lines = ["| " + " | ".join(header) + " |", "|---|---|---|" + "---:|" * (len(header) - 3)]
    for name, size in SIZES.items():
        if name.startswith("stereo"):
            continue
        for rank, weight_bytes in ((0, 4), (16, 4), (16, 2)):
            for seconds, rows, micro_batch in ((10, 32, 4), (10, 64, 4), (30, 32, 2)):
                need = memory(size, seconds, rows, micro_batch, rank, weight_bytes, mixed=True, averaged=True)
                what = [
                    f"{name}, {size.parameters / 1e6:,.0f} M",
                    f"LoRA, R = {rank}" if rank else "all",
                    "float32" if weight_bytes == 4 else "bfloat16",
                    f"{seconds} s",
                    str(rows),
                    str(micro_batch),
                ]
                cells = [need.always, need.rollout, need.scoring, need.peak]
                lines.append("| " + " | ".join([*what, *(f"{cell / GB:.1f}" for cell in cells)]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
