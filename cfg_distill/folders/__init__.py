"""Model folders: their names, packaged models and GGUF files, and LoRA adapters as numbers. No torch model is built in here."""

from cfg_distill.files import expanded
from cfg_distill.folders.cache import cache_folder
from cfg_distill.folders.checksums import CHECKSUMS, refuse_damaged, sha256, write_checksums
from cfg_distill.folders.gguf import cached_name, converted, problems_of_gguf
from cfg_distill.folders.hub import ask_hub
from cfg_distill.folders.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    RECIPES,
    SHIPPED,
    adapter_config,
    base_of,
    existing_file,
    find_file,
    from_hub,
    is_adapter,
    lacks_words,
    model_type_of,
    problems_of_folder,
    resolve,
    similar_file,
    source,
    whole_path,
)
from cfg_distill.folders.packages import PACKAGED, Packaged
from cfg_distill.folders.shards import INDEX, problems_of_index, shards_of
from cfg_distill.folders.weights import open_weights

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "CHECKSUMS",
    "INDEX",
    "PACKAGED",
    "RECIPES",
    "SHIPPED",
    "Packaged",
    "adapter_config",
    "ask_hub",
    "base_of",
    "cache_folder",
    "cached_name",
    "converted",
    "existing_file",
    "expanded",
    "find_file",
    "from_hub",
    "is_adapter",
    "lacks_words",
    "model_type_of",
    "open_weights",
    "problems_of_folder",
    "problems_of_gguf",
    "problems_of_index",
    "refuse_damaged",
    "resolve",
    "sha256",
    "shards_of",
    "similar_file",
    "source",
    "whole_path",
    "write_checksums",
]
