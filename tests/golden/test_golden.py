"""The first losses of six tiny recipes are what they were; see golden.py, which makes the files anew."""

from __future__ import annotations

import json

import pytest
from fenced import ROOT
from scripts import script

FOLDER = ROOT / "tests" / "golden"


golden = script(FOLDER / "golden.py")


def test_each_recipe_has_its_file() -> None:
    assert {file.stem for file in FOLDER.glob("*.json")} == set(golden.RECIPES) and len(golden.RECIPES) == 6


@pytest.mark.parametrize("name", golden.RECIPES)
def test_the_first_losses_are_what_they_were(name: str) -> None:
    """To the bit on the processor that wrote the file; to rounding on another one of its kind."""
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    here, there = golden.environment(), content["environment"]
    for key in ("torch", "machine"):
        if here[key] != there[key]:
            pytest.skip(f"{key} is {here[key]}, and the file is of {there[key]}: other kernels round otherwise.")
    expected = [{key: float.fromhex(value) for key, value in step.items()} for step in content["steps"]]
    found = golden.first_steps(name)
    advice = f"A loss has moved. If it had to, say why, and write the files anew: {golden.COMMAND}"
    if here == there:
        assert found == expected, advice
    else:
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-5), advice
