"""The embedded default: a small text-to-music model with its corpus, tokenizer, encoder, judge and rendering.

This file imports only modules without torch. Import networks, metrics and data modules from their own files.
"""

from cfg_distill.tunes.bars import bar_validity
from cfg_distill.tunes.corpus import Tune, load_corpus, tunes_of
from cfg_distill.tunes.prompts import Understanding, chat_template, understand

__all__ = ["Tune", "Understanding", "bar_validity", "chat_template", "load_corpus", "tunes_of", "understand"]
