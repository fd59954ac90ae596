"""A study: its steps, run in order of need, each skipped when its inputs are unchanged."""

from __future__ import annotations

from pathlib import Path


def run_study(path: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Run a study file, or go on with it; prints progress, then the table.

    Args:
        path: the study file.
        out: the folder of the results; None takes the file's ``out``.
        overwrite: accept that the study or the code changed since it was begun, and remake what depends on the change.

    Returns:
        The folder of the results.

    Raises:
        ConfigError: problems of the file, all at once; or the file changed since the study was begun.
    """
    raise NotImplementedError
