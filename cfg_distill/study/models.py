"""Points of a front for finished models: what ``cfg-distill evaluate`` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def evaluate_models(
    models: Sequence[str],
    prompts: str | Path,
    out: str | Path | None = None,
    samples: int = 8,
    seeds: Sequence[int] = (0,),
    max_new_tokens: int = 128,
    temperature: Sequence[float] = (1.0,),
    guidance: Sequence[float] = (1.0,),
    metrics: str | Path | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
) -> None:
    """Evaluate each model at each temperature and guidance scale; prints the table.

    Args:
        models: model folders, hub names or ``tunes:base``.
        prompts: a file of prompts: text (a prompt a line), JSON lines or CSV.
        out: a folder for front.json, front.png, table.txt and the per-prompt values; None only prints.
        samples: samples a prompt and seed.
        seeds: of sampling; each draws its own groups.
        max_new_tokens: the longest sample.
        temperature: sampling temperatures.
        guidance: scales of guidance; 1 is none.
        metrics: a YAML file, name -> class_path and init_args; None chooses by the kind of model.
        batch_size: prompts at once.
        overwrite: write into an ``out`` that holds results.

    Raises:
        ConfigError: all problems of the arguments at once.
    """
    raise NotImplementedError
