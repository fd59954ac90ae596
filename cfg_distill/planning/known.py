"""Published models by their sizes, for a plan without a network: widths and depths as their ``config.json`` on the hub says."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    ASTConfig,
    ASTModel,
    ClapConfig,
    ClapModel,
    EncodecConfig,
    LlamaConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

_T5_WORDS = 32128
_LETTERS_PER_TOKEN = 4
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def _llama(width: int, inner: int, layers: int, heads: int, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=tied,
    )  # fmt: skip


def _qwen2(width: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int, tied: bool) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, max_position_embeddings=32768, tie_word_embeddings=tied,
    )  # fmt: skip


def _qwen3(width: int, inner: int, layers: int, heads: int, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, head_dim=128,
        num_key_value_heads=8, vocab_size=151936, max_position_embeddings=40960, tie_word_embeddings=tied,
    )  # fmt: skip


def musicgen(layers: int, width: int, heads: int, codebooks: int = 4, melody: bool = False) -> Any:
    """The decoder; the text encoder is T5-base, the codec EnCodec at 32 kHz and 50 frames per second."""
    settings: dict[str, Any] = {
        "num_hidden_layers": layers, "hidden_size": width, "ffn_dim": 4 * width, "num_attention_heads": heads,
        "num_codebooks": codebooks, "audio_channels": codebooks // 4, "vocab_size": 2048, "max_position_embeddings": 2048,
    }  # fmt: skip
    text = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, vocab_size=_T5_WORDS)
    codec = EncodecConfig(
        sampling_rate=32000, audio_channels=1, normalize=False, chunk_length_s=None, overlap=None,
        target_bandwidths=[2.2], upsampling_ratios=[8, 5, 4, 4], num_filters=64, codebook_size=2048, codebook_dim=128,
        norm_type="weight_norm", use_causal_conv=False,
    )  # fmt: skip
    if melody:
        own = MusicgenMelodyDecoderConfig(**settings)
        return MusicgenMelodyConfig(
            text_encoder=text, audio_encoder=codec, decoder=own, num_chroma=12, chroma_length=235
        )
    return MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=MusicgenDecoderConfig(**settings))


ARCHITECTURES: dict[str, Any] = {
    "facebook/musicgen-small": lambda: musicgen(24, 1024, 16),
    "facebook/musicgen-medium": lambda: musicgen(48, 1536, 24),
    "facebook/musicgen-large": lambda: musicgen(48, 2048, 32),
    "facebook/musicgen-stereo-small": lambda: musicgen(24, 1024, 16, codebooks=8),
    "facebook/musicgen-stereo-medium": lambda: musicgen(48, 1536, 24, codebooks=8),
    "facebook/musicgen-stereo-large": lambda: musicgen(48, 2048, 32, codebooks=8),
    "facebook/musicgen-melody": lambda: musicgen(48, 1536, 24, melody=True),
    "Qwen/Qwen2.5-0.5B-Instruct": lambda: _qwen2(896, 4864, 24, 14, 2, 151936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": lambda: _qwen2(1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": lambda: _qwen2(3584, 18944, 28, 28, 4, 152064, tied=False),
    "Qwen/Qwen3-4B-Instruct-2507": lambda: _qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen/Qwen3-8B": lambda: _qwen3(4096, 12288, 36, 32, tied=False),
    "meta-llama/Llama-3.2-1B-Instruct": lambda: _llama(2048, 8192, 16, 32, tied=True),
    "meta-llama/Llama-3.1-8B-Instruct": lambda: _llama(4096, 14336, 32, 32, tied=False),
}
"""The start models whose sizes are known here, by their names on the hub."""

_EMBEDDERS: dict[str, Any] = {
    "laion/larger_clap_music": lambda: ClapModel(
        ClapConfig(
            audio_config={
                "patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2],
                "num_attention_heads": [4, 8, 16, 32],
            }
        )
    ),
    "MIT/ast-finetuned-audioset-10-10-0.4593": lambda: ASTModel(ASTConfig()),
}  # fmt: skip


@cache
def numbers_of_embedder(name: str) -> int | None:
    """Numbers in the weights of a published encoder; None of one that is not known here."""
    if name not in _EMBEDDERS:
        return None
    with torch.device("meta"):
        return sum(weight.numel() for weight in _EMBEDDERS[name]().parameters())


def write_folder(name: str, folder: Path) -> PreTrainedTokenizerFast:
    """Write a model folder of a published size: its config, and a tokenizer that counts tokens as English has them.

    Four characters make a token, which is near what the tokenizers of language models make of English. The weights file is
    empty: a plan reads none.

    Args:
        name: one of :data:`ARCHITECTURES`.
        folder: an empty folder.

    Returns:
        The tokenizer. ``AutoTokenizer`` reads that of a Qwen2 as Qwen2's own, whatever the folder says, and finds no token in a
        text.
    """
    config = ARCHITECTURES[name]()
    config.save_pretrained(folder)
    is_sound = config.model_type.startswith("musicgen")
    special = ["<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    words = special + [f"word{number}" for number in range(_T5_WORDS - len(special) if is_sound else 0)]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(f"[\\s\\S]{{1,{_LETTERS_PER_TOKEN}}}"), behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        padding_side="right" if is_sound else "left",
    )  # fmt: skip
    if not is_sound and ("nstruct" in name or "Qwen3" in name):
        tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(folder)
    nothing: dict[str, Tensor] = {"nothing": torch.zeros(0)}
    save_file(nothing, folder / "model.safetensors")
    return tokenizer
