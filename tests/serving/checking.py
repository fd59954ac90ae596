"""The checks, inside the environment: students and texts first, then every engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from serving import students as made
from serving.checks import Checks, Texts
from serving.environment import Environment


def check(environment: Environment, engines: Sequence[str], given: Path | None) -> int:
    """Run the checks of some engines; returns the exit code."""
    checks = Checks()
    students = made.Students(environment.cache / "students", environment, "llama" in engines)
    print(f"Students, in {students.folder} (torch {torch.__version__})", flush=True)
    students.make()
    texts = students.texts()
    _tell_apart(texts, students, checks)
    if "llama" in engines:
        from serving import llama

        llama.check(students, texts, checks)
    if "peft" in engines:
        from serving import torch_engines

        torch_engines.check(students, texts, checks, given)
    if "mergekit" in engines:
        from serving import merges

        merges.check(students, checks)
    if "vllm" in engines:
        from serving import vllm

        vllm.check(students, texts, checks)
    return checks.told()


def _tell_apart(texts: Texts, students: made.Students, checks: Checks) -> None:
    """An engine that ignored a scale must not pass: neighbouring settings have different texts."""
    names = list(students.settings())
    equal = [f"{one} and {other}" for one, other in pairwise(names) if texts[one] == texts[other]]
    distinct = len({tuple(text.tokens) for each in texts.values() for text in each})
    count = sum(map(len, texts.values()))
    checks(not equal, f"the texts tell the settings apart ({distinct} of {count} texts differ)", ", ".join(equal))
