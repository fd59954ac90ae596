"""docs/differences.py on results of one study and of two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_study import write_study
from scripts import script

from cfg_distill.errors import ConfigError

differences = script(Path(__file__).parents[2] / "docs" / "differences.py")


def with_seeds(folder: Path, name: str, seeds: list[int]) -> None:
    """A system as several training seeds of one chain made it."""
    file = folder / "systems" / f"{name}.json"
    system = json.loads(file.read_text())
    values = {metric: [values] * len(seeds) for metric, values in system["values"].items()}
    file.write_text(json.dumps(system | {"values": values, "training_seeds": seeds, "chain": "quality"}))


def test_two_studies_of_other_training_seeds_are_compared(tmp_path, capsys) -> None:
    first, second = (write_study(tmp_path / name, prompts=3) for name in ("first", "second"))
    with_seeds(first, "quality", [0, 1, 2])
    with_seeds(second, "quality", [3, 4])
    differences.main(str(first), "quality", str(second), "quality")
    assert "quality              +0.000 [" in capsys.readouterr().out
    differences.main(str(first), "quality", str(first), "guidance 2")
    assert "quality " in capsys.readouterr().out


def test_a_system_that_is_not_there_is_named(tmp_path) -> None:
    folder = str(write_study(tmp_path / "first", prompts=3))
    with pytest.raises(ConfigError, match="has no `nobody`, but base, "):
        differences.main(folder, "nobody", folder, "quality")
