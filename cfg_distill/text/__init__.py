"""Text models that come as Python packages: where they are, and the one-time conversion of GGUF files."""

from cfg_distill.text.cache import cache_folder
from cfg_distill.text.gguf import cached_name, converted, problems_of_gguf
from cfg_distill.text.packages import PACKAGED, Packaged

__all__ = ["PACKAGED", "Packaged", "cache_folder", "cached_name", "converted", "problems_of_gguf"]
