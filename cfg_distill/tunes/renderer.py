"""Tunes as the evaluation shows and writes them: ABC, MIDI and WAV. The model's own folder names this renderer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfg_distill.errors import Problem
from cfg_distill.evaluation.renderers import Renderer
from cfg_distill.folders import base_of, expanded, source
from cfg_distill.folders.profile import Profile
from cfg_distill.tunes.prompts import UNDERSTOOD, prefix, problems_of_prompts, understand
from cfg_distill.tunes.rendering import played_notes, render, setting_of, to_abc

PROFILE_OF_TUNES = Profile("cfg_distill.tunes.renderer.TuneRenderer", "recipes/tunes/metrics.yaml")


class TuneRenderer(Renderer):
    """Music tokens as ABC on the screen, and as ABC, MIDI and WAV in files."""

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        return problems_of_prompts(prompts)

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        found = []
        for prompt in dict.fromkeys(prompts):
            meaning = understand(prompt)
            if meaning.unknown_words:
                found.append(
                    f"Prompt {prompt!r}: {_quoted(meaning.unknown_words)} not understood; what is: {UNDERSTOOD}."
                )
            if meaning.contradicting:
                found.append(
                    f"Prompt {prompt!r}: {_quoted(meaning.contradicting)} left out, since words before say otherwise."
                )
        return found

    def text(self, sample: Any, prompt: str) -> str:
        return to_abc(setting_of(sample, understand(prompt)), prompt).rstrip()

    def is_empty(self, sample: Any) -> bool:
        """Whether no note sounds: a bar of rests has letters, and is silent."""
        return not played_notes(setting_of(sample, understand("")))

    def write(self, sample: Any, prompt: str, folder: Path, stem: str) -> str:
        render(sample, folder, stem, prompt)
        return ""


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def profile_of_older_folder(path: str) -> Profile | None:
    """The profile of a folder that version 0.1 exported: such a folder has none, but a tokenizer with the tunes' slots.

    To go after the next release.
    """
    base = base_of(path)
    file = (source(base) or expanded(base)) / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        core = json.loads(file.read_text(encoding="utf-8"))
        words = {word["content"] for word in core["added_tokens"]} | {*core["model"]["vocab"]}
    except (ValueError, KeyError, TypeError):  # cut short, or of another kind
        return None
    return PROFILE_OF_TUNES if words.issuperset(prefix({}).split()) else None
