"""Tiny language models of songs with random weights: a Qwen3 with ACE-Step's tokens and template, a Llama with YuE's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

NUM_CODES = 12
# What Qwen3's own template does to a system, a user and an assistant message: the assistant's thought is written anew.
TEMPLATE = """
{%- for message in messages -%}
{%- if message.role != 'assistant' -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- else -%}
{%- set thought = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set said = message.content.split('</think>')[-1].lstrip('\n') -%}
{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said + '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""
ACE_PROMPT = {"lyrics": "[verse]\nHello", "bpm": "96", "duration": "30", "keyscale": "F# minor", "timesignature": "4/4"}
YUE_PROMPT = {"lyrics": "[verse]\nHello\n\n[chorus]\nAgain"}


def _bytes_and(tokens: list[str], **special: str) -> PreTrainedTokenizerFast:
    """One token per byte of text, and some tokens more."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def _saved(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, ids: dict[str, int]) -> str:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_ace_step(folder: Path, seed: int = 0) -> str:
    """A Qwen3 whose vocabulary ends with 12 codes of the codec and one that the codec has not."""
    torch.manual_seed(seed)
    codes = [f"<|audio_code_{code}|>" for code in [*range(NUM_CODES), 64_000]]
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", *codes]
    tokenizer = _bytes_and(names, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 3, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return _saved(Qwen3ForCausalLM(config), tokenizer, folder, {"eos_token_id": end, "pad_token_id": pad})


def tiny_yue(folder: Path, seed: int = 0) -> str:
    """A Llama with YuE's own numbers of codes, of which a tokenizer says nothing."""
    torch.manual_seed(seed)
    tokenizer = _bytes_and(["<s>", "</s>", "<SOA>", "<EOA>", "<xcodec>"], bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=46_400, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    return _saved(LlamaForCausalLM(config), tokenizer, folder, {})
