"""Tiny real models for the tests: a Llama of a few thousand parameters and a word-level tokenizer, written to a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cfg_distill.generators import CausalLM, LoRA

WORDS = [f"w{n}" for n in range(12)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens <pad> 0, <s> 1, </s> 2, <unk> 3, then w0 .. w11."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )


def tiny_folder(folder: Path, seed: int = 0, scale: float = 4.0, **sizes: int) -> str:
    """A tiny Llama in a Hugging Face folder. ``scale`` sharpens the head, so that distributions differ visibly."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 16,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
            **sizes,
        }
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_adapted(folder: str) -> CausalLM:
    """A generator of the folder with an adapter that is not zero."""
    generator = CausalLM(folder, lora=LoRA(rank=2)).load()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return generator
