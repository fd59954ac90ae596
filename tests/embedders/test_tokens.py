"""Where words end: measured against sacrebleu's tokenizer for Chinese, and against ``\\w`` where that is right."""

import re

import pytest
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from cfg_distill.embedders import WordCounts, cosine_distances
from cfg_distill.embedders.tokens import tokens, words
from cfg_distill.metrics import DistinctN, SelfBLEUDiversity
from cfg_distill.metrics.substance import new_words

CHINESE = "海面很静谁也没有说话小船慢慢划回岸边 the lamp 亮起"


def test_chinese_is_cut_as_by_sacrebleu():
    assert tokens(CHINESE) == TokenizerZh()(CHINESE).split()


@pytest.mark.parametrize("text", ["The SEA, the sea!", "snake_case x2 – Ångström's naïve ½", "Пришла весна, и лёд", ""])
def test_words_of_scripts_with_spaces_are_those_of_a_regular_expression(text):
    assert words(text) == re.findall(r"\w+", text.casefold())
    assert tokens(text) == text.split()


def test_vowel_signs_do_not_split_a_word():
    assert words("हिन्दी में, लिखा है।") == ["हिन्दी", "में", "लिखा", "है"]


def test_an_accent_of_its_own_is_that_of_its_letter():
    assert words("e\u0301te\u0301") == tokens("e\u0301te\u0301") == ["\u00e9t\u00e9"]


def test_texts_without_spaces_are_compared_by_their_characters():
    one, other = "海面很静，谁也没有说话。", "海面很静，谁也没有来。"
    near, far = cosine_distances(WordCounts(n=1).embed([one, other, "火车站里人山人海"]))[0, 1:].tolist()
    assert 0 < near < 0.5 < far
    assert new_words(one, "写海") == 9
    assert DistinctN(n=1).score_group([one, one]) == pytest.approx(0.5)
    same, different = SelfBLEUDiversity().score_group([one, one]), SelfBLEUDiversity().score_group([one, other])
    assert same == pytest.approx(0) and 0 < different < 0.7
