"""The tokenizer of the embedded model: words between spaces, as a plain file that transformers alone loads.

A sequence is ``<origin:irish> <rhythm:jig> <metre:6/8> <mode:major> <s> C:1 E:1 ... </s>``. The four condition tokens may
be null, ``<origin:any>``; all null is the unconditional prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cfg_distill.tunes.corpus import METRES, MODES, Tune
from cfg_distill.tunes.prompts import NULL, SLOTS, chat_template

VALUES: dict[str, tuple[str, ...]] = {
    "origin": ("irish", "american", "scottish", "english"),
    "rhythm": ("reel", "jig", "slip jig", "hornpipe", "strathspey", "march", "air"),
    "metre": tuple(METRES),
    "mode": MODES,
}
PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


def slot_token(slot: str, value: str) -> str:
    """``<rhythm:slip jig>``; a value that the model does not know is null."""
    return f"<{slot}:{value if value in VALUES[slot] else NULL}>"


def sequence_of(tune: Tune) -> list[str]:
    """The sequence that the model is trained on: conditions, begin, music, end."""
    return [*(slot_token(slot, tune.slots[slot]) for slot in SLOTS), BEGIN, *tune.tokens, END]


def build_tokenizer(music: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the special tokens, the condition tokens and the music tokens.

    Args:
        music: the music tokens, as :func:`cfg_distill.tunes.corpus.vocabulary` lists them.
        max_length: positions of the model.
    """
    conditions = [f"<{slot}:{value}>" for slot in SLOTS for value in (NULL, *VALUES[slot])]
    special = [PAD, BEGIN, END, UNKNOWN]
    words = {token: number for number, token in enumerate([*special, *conditions, *music])}
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        # Special: found before the text is split (one has a space in it), left out of decoded text.
        additional_special_tokens=conditions,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = chat_template()
    return tokenizer
