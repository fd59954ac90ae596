"""A folder of its own for each test that runs what a page says, as a user would have it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of the test; what commands put into path and environment is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # LightningCLI still calls what jsonargparse will drop; outside of tests nobody sees that.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    environment, path = dict(os.environ), list(sys.path)
    importlib.invalidate_caches()
    yield tmp_path
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
