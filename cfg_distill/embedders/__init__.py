"""Frozen models that map decoded outputs to vectors: what rewards and metrics compare."""

import importlib
from typing import Any

from cfg_distill.embedders.base import Embedder, embedded, is_empty
from cfg_distill.embedders.clap import CLAP, AudioEmbedder
from cfg_distill.embedders.ngrams import NGramCounts
from cfg_distill.embedders.similarity import cosine_distances
from cfg_distill.embedders.text import TransformerEmbedder
from cfg_distill.embedders.words import WordCounts
from cfg_distill.generators.frozen import Frozen

__all__ = [
    "CLAP",
    "AudioEmbedder",
    "Embedder",
    "Frozen",
    "NGramCounts",
    "TransformerEmbedder",
    "WordCounts",
    "cosine_distances",
    "embedded",
    "is_empty",
]


def __getattr__(name: str) -> Any:
    if name == "Tunes":  # its name until 0.1; it moved to the room of the model it belongs to
        return importlib.import_module("cfg_distill.tunes.embedder").Tunes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
