"""Tiny MusicGen models with random weights: mono of 4 codebooks, stereo of 8, and melody; tokenizer files included."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

WORDS = ["rock", "jazz", "calm", "loud", "piano", "80s", "synth", "pop", "noise", "song"]
PAD = 32  # the vocabulary of the sound, and the token after it
CHROMA = {
    "feature_size": 12,
    "sampling_rate": 3200,
    "hop_length": 256,
    "chunk_length": 2,
    "n_fft": 1024,
    "num_chroma": 12,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """As T5 writes its text: words, then ``</s>``; padding is 0."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


def tiny_musicgen(
    folder: Path,
    kind: str = "mono",
    seed: int = 0,
    scale: float = 5.0,
    text_width: int = 12,
    positions: int = 64,
    sharpness: float = 1.0,
) -> str:
    """A MusicGen of a few thousand parameters in a Hugging Face folder.

    Args:
        folder: where to.
        kind: ``mono``, ``stereo`` or ``melody``.
        seed: of the weights.
        scale: makes weights larger, so that prompts and distributions differ visibly.
        text_width: of the text encoder; 16 is that of the decoder, which then needs no projection.
        positions: of the decoder's table.
        sharpness: a factor on the heads: distributions with fewer likely tokens.
    """
    torch.manual_seed(seed)
    text = T5Config(
        vocab_size=16, d_model=text_width, d_kv=4, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    codec = EncodecConfig(
        sampling_rate=3200, audio_channels=1, normalize=False, target_bandwidths=[2.0], upsampling_ratios=[8, 4],
        num_filters=4, hidden_size=8, codebook_size=PAD, codebook_dim=8, num_residual_layers=1, num_lstm_layers=1,
        norm_type="weight_norm", use_causal_conv=False, chunk_length_s=None, overlap=None,
    )  # fmt: skip
    channels = 2 if kind == "stereo" else 1
    settings = {
        "vocab_size": PAD, "max_position_embeddings": positions, "num_hidden_layers": 2, "ffn_dim": 32,
        "num_attention_heads": 2, "hidden_size": 16, "num_codebooks": 4 * channels, "audio_channels": channels,
        "pad_token_id": PAD, "bos_token_id": PAD,
    }  # fmt: skip
    if kind == "melody":
        model = MusicgenMelodyForConditionalGeneration(
            MusicgenMelodyConfig(
                text_encoder=text, audio_encoder=codec, decoder=MusicgenMelodyDecoderConfig(**settings), chroma_length=5
            )
        )
    else:
        decoder = MusicgenDecoderConfig(**settings)
        model = MusicgenForConditionalGeneration(
            MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("decoder", "enc_to", "audio_enc_to")) and parameter.ndim == 2:
                parameter.normal_(0, 0.06 * scale * (sharpness if "lm_heads" in name else 1.0))
    # A codec's codebooks begin as zeros: every token would sound the same.
    for name, buffer in model.audio_encoder.named_buffers():
        if name.endswith("codebook.embed"):
            buffer.normal_()
    model.generation_config.update(
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        bos_token_id=PAD,
        do_sample=True,
        guidance_scale=3.0,
        max_length=40,
    )
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    processor = "MusicgenMelodyProcessor" if kind == "melody" else "MusicgenProcessor"
    extractor = CHROMA if kind == "melody" else {"feature_size": 1, "sampling_rate": 3200, "padding_value": 0.0}
    kind_of = "MusicgenMelodyFeatureExtractor" if kind == "melody" else "EncodecFeatureExtractor"
    content = {**extractor, "feature_extractor_type": kind_of, "processor_class": processor}
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(content))
    return str(folder)
