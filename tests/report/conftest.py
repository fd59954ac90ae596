"""Finished studies, one per session: do not write into them but for what the commands themselves add."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_studies import sound_study, text_study, tune_study


@pytest.fixture(scope="session")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of tunes."""
    return tune_study(tmp_path_factory.mktemp("tunes"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of a tiny language model."""
    return text_study(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of a tiny MusicGen."""
    return sound_study(tmp_path_factory.mktemp("sounds"))
