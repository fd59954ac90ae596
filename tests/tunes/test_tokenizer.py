"""The tokenizer as a plain file."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cfg_distill.tunes.corpus import Tune
from cfg_distill.tunes.prompts import prefix
from cfg_distill.tunes.tokenizer import VALUES, build_tokenizer, sequence_of, slot_token

MUSIC = ("|", "||", "|:", ":|", "C:1", "D:1/2", "^F:2/3", "c':3", "z:2")
TUNE = Tune("x", "scottish", "slip jig", "9/8", "any", ("|:", "C:1", "^F:2/3", "|", "c':3", "z:2", ":|"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerFast:
    build_tokenizer(MUSIC, 64).save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_text_there_and_back(tokenizer: PreTrainedTokenizerFast) -> None:
    sequence = sequence_of(TUNE)
    assert sequence[:5] == ["<origin:scottish>", "<rhythm:slip jig>", "<metre:9/8>", "<mode:any>", "<s>"]
    numbers = tokenizer(" ".join(sequence))["input_ids"]
    assert tokenizer.convert_ids_to_tokens(numbers) == sequence
    assert tokenizer.decode(numbers, skip_special_tokens=True) == " ".join(TUNE.tokens)


def test_every_prefix_is_five_known_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for slot, values in VALUES.items():
        for value in (*values, "any"):
            numbers = tokenizer(prefix({slot: value}))["input_ids"]
            assert len(numbers) == 5
            assert tokenizer.unk_token_id not in numbers
            assert tokenizer.decode(numbers[list(VALUES).index(slot)]) == slot_token(slot, value)


def test_padding_is_on_the_left(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = tokenizer(["C:1", "C:1 | C:1"], padding=True)
    assert batch["input_ids"][0][:2] == [tokenizer.pad_token_id] * 2
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]


def test_chat_template_writes_the_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    def prompted(text: str) -> str:
        return tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)

    assert prompted("a Scottish slip jig") == prefix({"origin": "scottish", "rhythm": "slip jig", "metre": "9/8"})
    assert prompted("") == prefix({})


def test_an_unknown_value_is_null() -> None:
    assert slot_token("rhythm", "mazurka") == "<rhythm:any>"
