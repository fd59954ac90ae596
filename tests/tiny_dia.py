"""A tiny Dia with random weights, its processor and its codec, in folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    DacConfig,
    DacModel,
    DiaConfig,
    DiaFeatureExtractor,
    DiaForConditionalGeneration,
    DiaProcessor,
    DiaTokenizer,
)

DELAYS = (0, 2, 3)
CODES = 16
END, PAD, BEGIN = CODES, CODES + 1, CODES + 2


def tiny_dia(folder: Path, seed: int = 0, scale: float = 4.0, end_bias: float = 0.0) -> str:
    """A Dia of a few thousand parameters, delays 0, 2, 3, and a codec of 4 samples a frame at 8 kHz beside it.

    Args:
        folder: where to.
        seed: of the weights.
        scale: makes weights larger, so that prompts and distributions differ visibly.
        end_bias: adds up what points to the end token, so that it comes sooner.
    """
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = DiaConfig(
        encoder_config={
            "hidden_size": 12, "num_hidden_layers": 1, "intermediate_size": 24, "max_position_embeddings": 64, **heads
        },
        decoder_config={
            "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "max_position_embeddings": 128,
            "cross_num_attention_heads": 2, "cross_head_dim": 8, "cross_num_key_value_heads": 2, "cross_hidden_size": 12,
            "num_channels": 3, "vocab_size": CODES + 4, "eos_token_id": END, "pad_token_id": PAD, "bos_token_id": BEGIN,
            **heads,
        },
        delay_pattern=list(DELAYS),
    )  # fmt: skip
    model = DiaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.06 * scale)
        head_KVD = model.logits_dense.weight.unflatten(0, (3, CODES + 4))
        head_KVD[0, END] *= 1 + end_bias
    settings = {"do_sample": True, "guidance_scale": 3.0, "top_k": 5, "temperature": 1.2, "max_length": 40}
    ids = {"eos_token_id": END, "pad_token_id": PAD, "bos_token_id": BEGIN, "decoder_start_token_id": BEGIN}
    model.generation_config.update(**settings, **ids)
    model.save_pretrained(folder)
    codec = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[2, 2], decoder_hidden_size=16, upsampling_ratios=[2, 2],
        n_codebooks=3, codebook_size=CODES, codebook_dim=4, hidden_size=16, sampling_rate=8000,
    )  # fmt: skip
    DacModel(codec).save_pretrained(Path(folder) / "codec")
    DiaProcessor(
        DiaFeatureExtractor(sampling_rate=8000, hop_length=4),
        DiaTokenizer(),
        DacModel.from_pretrained(Path(folder) / "codec"),
    ).save_pretrained(folder)
    return str(folder)
