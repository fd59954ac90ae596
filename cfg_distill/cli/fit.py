"""``cfg-distill fit`` and ``validate``: LightningCLI over a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from cfg_distill.recipe.overrides import sorted_words


def run(command: str, argv: Sequence[str], check_only: bool = False) -> None:
    """Parse, check everything, then train or validate.

    Args:
        command: ``fit`` or ``validate``.
        argv: the words behind it.
        check_only: check everything and stop before anything is loaded.

    Raises:
        ConfigError: all problems of the configuration, before any weight is loaded.
    """
    sorted_words(argv)  # a missing file is found before torch is imported
    from cfg_distill.recipe.command_line import start

    start(command, argv, check_only)
