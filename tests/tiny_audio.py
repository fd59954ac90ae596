"""Tiny audio encoders with random weights in folders, and sounds to feed them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    HubertConfig,
    HubertModel,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
)

from cfg_distill.audio import Waveform

WORDS = ["rock", "jazz", "calm", "loud", "piano", "80s", "synth", "pop"]


def tiny_clap(folder: Path, fusion: bool = False, seed: int = 0) -> str:
    """A CLAP model that hears windows of one second at 8 kHz."""
    torch.manual_seed(seed)
    audio = {
        "spec_size": 32, "num_mel_bins": 8, "window_size": 4, "depths": [1, 1], "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "enable_fusion": fusion,
        "fusion_type": None, "patch_embed_input_channels": 1,
    }  # fmt: skip
    text = {
        "vocab_size": 4 + len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=12))
    with torch.no_grad():
        for parameter in model.parameters():  # random weights as initialised tell no clip from another
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    extractor = ClapFeatureExtractor(
        feature_size=8, sampling_rate=8000, hop_length=64, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="fusion" if fusion else "rand_trunc", padding="repeatpad",
    )  # fmt: skip
    extractor.save_pretrained(folder)
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def tiny_hubert(folder: Path, seed: int = 0) -> str:
    """A HuBERT that hears 16 kHz: the second opinion."""
    torch.manual_seed(seed)
    config = HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm="group",
    )  # fmt: skip
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=True).save_pretrained(folder)
    return str(folder)


def tone(frequency: float, seconds: float = 0.5, rate: int = 8000, level: float = 0.5, channels: int = 1) -> Waveform:
    """A sine."""
    time_L = torch.arange(round(seconds * rate)) / rate
    return Waveform((level * torch.sin(2 * torch.pi * frequency * time_L)).repeat(channels, 1), rate)


def noise(seed: int = 0, seconds: float = 0.5, rate: int = 8000, level: float = 0.3, channels: int = 1) -> Waveform:
    """White noise."""
    random = torch.Generator().manual_seed(seed)
    return Waveform(level * torch.randn(channels, round(seconds * rate), generator=random), rate)
