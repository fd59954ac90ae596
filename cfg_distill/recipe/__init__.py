"""Recipes: files found and merged, command-line overrides, every problem at once, and what is built from them."""

from cfg_distill.recipe.files import merge, merged, run_name
from cfg_distill.recipe.resolved import Recipe

__all__ = ["Recipe", "merge", "merged", "run_name"]
