"""``cfg-distill fit`` and ``validate``: LightningCLI over a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from cfg_distill.recipe.files import merged, with_recipes_found


def run(command: str, argv: Sequence[str], check_only: bool = False) -> None:
    """Parse, check everything, then train or validate; a study checks only, and then starts a process that does it all.

    Raises:
        ConfigError: all problems of the configuration, before any weight is loaded.
    """
    words, files = with_recipes_found(argv)
    from cfg_distill.recipe.command_line import start

    start(command, words, files, merged(files), check_only)
