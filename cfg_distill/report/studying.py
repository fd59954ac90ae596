"""A whole study: its steps, the choice of its claims, its page."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cfg_distill.report.choosing import decide
from cfg_distill.report.page import write_report
from cfg_distill.study import run_steps


def run_study(
    path: str | Path,
    out: str | Path | None = None,
    overwrite: bool = False,
    inline: bool | None = None,
    remake: Collection[str] = (),
) -> Path:
    """Run a study file, or go on with it; write the choice of its claims and report.html. What ``cfg-distill study`` runs.

    Args:
        path: the study file.
        out: the folder of the results; None takes the file's ``out``.
        overwrite: accept that the study changed since it was begun, and remake what depends on the change.
        inline: put the sound into the page; None as in :func:`cfg_distill.report.write_report`.
        remake: kinds of steps to make again; see :func:`cfg_distill.study.run_steps`.

    Returns:
        The folder of the results.

    Raises:
        ConfigError, StepFailed, KeyboardInterrupt: see :func:`cfg_distill.study.run_steps`.
    """
    folder = run_steps(path, out, overwrite, remake)
    if decision := decide(folder):
        print(decision)
    print(f"Wrote {write_report(folder, inline)}.")
    return folder
