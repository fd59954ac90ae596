"""Thirty SIGKILLs at uniform moments. More of them: ``make torture N=1000``."""

from __future__ import annotations

from pathlib import Path

import forked
import pytest
from torture import Torture

from cfg_distill.study import processes


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.subprocess, "Popen", forked.ForkedProcess)
    torture = Torture(tmp_path, seed=1)
    torture.run(30)
    assert torture.kills >= 30
    assert [trial for trial in torture.trials if trial["found"]] == []
    print(torture.summary())
