"""A tiny CSM with random weights, its processor and its codec, in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CsmConfig,
    CsmForConditionalGeneration,
    CsmProcessor,
    EncodecFeatureExtractor,
    GenerationConfig,
    MimiConfig,
    PreTrainedTokenizerFast,
)

CODES, BOOKS = 8, 3
END, PAD = 0, CODES + 2


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte between a begin and an end token, as the tokenizer of CSM writes a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in ("<b>", "<e>", "<|AUDIO|>", "<|audio_eos|>")])
    begin, end = (tokenizer.token_to_id(each) for each in ("<b>", "<e>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<b> $A <e>", special_tokens=[("<b>", begin), ("<e>", end)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<b>", eos_token="<e>", pad_token="<|AUDIO|>")


def tiny_csm(
    folder: Path, seed: int = 0, codes: int = CODES, books: int = BOOKS, end: int = END, sharpness: float = 1.0
) -> str:
    """A CSM of a few thousand parameters, and a codec of 4 samples a frame at 8 kHz.

    Args:
        folder: where to.
        seed: of the weights.
        codes: the codes of the codec; the vocabularies of the model have three more, as that of CSM.
        books: K.
        end: the token that ends a clip, in all codebooks but the last.
        sharpness: a factor on the heads: distributions with fewer likely tokens.
    """
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    codec = MimiConfig(
        sampling_rate=8000, audio_channels=1, hidden_size=8, num_filters=4, num_residual_layers=1, upsampling_ratios=[2, 2],
        codebook_size=codes, codebook_dim=8, num_quantizers=books, num_semantic_quantizers=1, num_hidden_layers=1,
        vector_quantization_hidden_dimension=8, num_attention_heads=2, num_key_value_heads=2, head_dim=4, intermediate_size=16,
        upsample_groups=8, use_causal_conv=True, frame_rate=1000.0, kernel_size=3, last_kernel_size=3,
    )  # fmt: skip
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = CsmConfig(
        num_codebooks=books, vocab_size=codes + 3, text_vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32,
        num_hidden_layers=2, max_position_embeddings=512, codebook_eos_token_id=end, codebook_pad_token_id=codes + 2,
        pad_token_id=tokenizer.pad_token_id, audio_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        audio_eos_token_id=tokenizer.convert_tokens_to_ids("<|audio_eos|>"), codec_config=codec.to_dict(), **heads,
        depth_decoder_config={
            "num_codebooks": books, "backbone_hidden_size": 16, "vocab_size": codes + 3, "hidden_size": 12,
            "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": books + 1, **heads,
        },
    )  # fmt: skip
    model = CsmForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("codec_model"):
                parameter.normal_(0, 0.3 * (sharpness if "head" in name else 1.0))
        for name, buffer in model.codec_model.named_buffers():
            if name.endswith("embed_sum"):  # a codec's codebooks begin as zeros: every token would sound the same
                buffer.normal_()
    settings = {"do_sample": True, "temperature": 0.9, "top_k": 5}
    length = {"min_new_tokens": books - 1, "max_new_tokens": books - 1}
    model.generation_config = GenerationConfig(**settings, max_new_tokens=20)
    model.depth_decoder.generation_config = GenerationConfig(**settings, **length)
    model.save_pretrained(folder)
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=8000)
    CsmProcessor(extractor, tokenizer).save_pretrained(folder)
    return str(folder)
