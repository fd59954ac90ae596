"""Frozen models that map decoded outputs to vectors: what rewards and metrics compare."""

from cfg_distill.embedders.base import Embedder
from cfg_distill.embedders.clap import CLAP, AudioEmbedder
from cfg_distill.embedders.ngrams import NGramCounts
from cfg_distill.embedders.similarity import cosine_distances
from cfg_distill.embedders.text import TransformerEmbedder
from cfg_distill.embedders.tunes import Tunes

__all__ = [
    "CLAP",
    "AudioEmbedder",
    "Embedder",
    "NGramCounts",
    "TransformerEmbedder",
    "Tunes",
    "cosine_distances",
]
