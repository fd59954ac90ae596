"""Broken input: a sample of the cases in every run of the suite, all of them by `make fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fuzz.__main__ import NUMBERS, all_cases
from fuzz.case import Case, Outcome, complaints
from fuzz.world import World

TESTS = Path(__file__).parent.parent


def fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *words], cwd=TESTS, env=environment, capture_output=True, text=True, check=False
    )


def test_a_sample_of_broken_input_is_refused() -> None:
    run = fuzz("--sample", "6", "--jobs", "2")
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def cases(world: World) -> list[Case]:
    return all_cases(world)


def test_the_cases_are_a_thousand_and_the_same_in_every_run(world: World, cases: list[Case]) -> None:
    assert len(cases) == sum(NUMBERS.values()) >= 1000
    again = all_cases(world)
    assert [(case.area, case.name, case.words) for case in cases] == [
        (case.area, case.name, case.words) for case in again
    ]
    several = [name for name, number in Counter((case.area, case.name) for case in cases).items() if number > 1]
    assert several == []


def test_the_page_counts_the_same_cases(cases: list[Case]) -> None:
    page = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
    counted = Counter(case.area for case in cases)
    for area, number in counted.items():
        assert f"| {area} | {number} |" in page
    assert f"{sum(counted.values()):,} broken" in page


def outcome(code: int = 2, err: str = "Key `a.b`: expected 1. Set it.", **settings: object) -> Outcome:
    defaults: dict[str, object] = {"hung": False, "out": "", "changed": [], "spoilt": [], "stray": [], "seconds": 0.0}
    return Outcome(code=code, err=err, **(defaults | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expect", "got", "said"),
    [
        ("refused", outcome(), []),
        ("legal", outcome(0), []),
        ("either", outcome(0), []),
        ("refused", outcome(0), ["nonsense is accepted"]),
        ("legal", outcome(), ["refused, though it is legal"]),
        ("refused", outcome(err="Wrong."), ["the message names none of b", "the message gives no advice"]),
        (
            "either",
            outcome(1, "Traceback (most recent call last)\nKeyError: 3"),
            ["exit code 1", "traceback: KeyError: 3"],
        ),
        ("either", outcome(-11), ["ends by signal 11"]),
        ("either", outcome(hung=True), ["hangs"]),
        ("either", outcome(0, spoilt=["x.ckpt"], changed=["a"]), ["overwrote: a", "wrote NaN: x.ckpt"]),
    ],
)
def test_what_is_wrong_with_an_outcome(expect: str, got: Outcome, said: list[str]) -> None:
    case = Case("an area", "a name", ("fit",), expect=expect, named=("b",))  # type: ignore[arg-type]
    assert complaints(case, got) == said
