"""vLLM on a CPU: a folder per setting, several in one batch; rows and cache of students against guidance.

vLLM has an environment of its own, without this package: a worker there answers one file of questions.
"""

from __future__ import annotations

import json
from typing import Any

from serving.checks import Checks, Texts, compare
from serving.environment import run
from serving.students import TOKENS, Students, encoded
from serving.turns import median

FOLDERS = ("knob 0", "knob 0.5", "knob 1", "dial 1")
"""The settings that are whole adapter folders; vLLM has no scale per request."""
PAIRED = 6


def check(students: Students, texts: Texts, checks: Checks) -> None:
    """Every check of this engine."""
    place, settings, prompts = students.folder / "vllm.json", students.settings(), students.prompt_tokens()
    asked = [
        f"Describe a {thing}." for thing in ("harbor", "lost key", "beehive", "market", "mountain", "library")[:PAIRED]
    ]
    paired = encoded(students.base, (*asked, None))
    job = {
        "base": students.base,
        "adapters": {name: str(settings[name].folder) for name in FOLDERS},
        "prompts": prompts,
        "tokens": TOKENS,
        "paired": paired[:-1],
        "dropped": paired[-1],
    }
    place.write_text(json.dumps(job))
    environment = {
        **students.environment.variables,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    environment |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    worker = students.environment.vllm_python, "-m", "serving.vllm_worker", place, place.with_suffix(".out.json")
    run(worker, env=environment, timeout=1200)
    answer = json.loads(place.with_suffix(".out.json").read_text())
    print(f"\nvLLM {answer['version']}, torch {answer['torch']}")
    what = f"{len(FOLDERS)} adapter folders and the base in one batch"
    holds, told = compare(texts, answer["texts"])
    checks(holds, what, told)
    _paired(answer, checks)


def _paired(answer: dict[str, Any], checks: Checks) -> None:
    """What streams of a student take, beside those of the base with a second row for the dropped prompt."""
    one, two = (
        {part: [run[part] for run in answer[side]] for part in ("rows", "blocks", "seconds")}
        for side in ("student", "paired")
    )
    rows, blocks = ((max(one[part]), max(two[part])) for part in ("rows", "blocks"))
    told = f"{rows[0]} rows and {blocks[0]} blocks of {answer['block']} positions, {rows[1]} and {blocks[1]}"
    checks(rows[0] * 2 == rows[1], f"{PAIRED} streams: a student's rows are half of those of base + guidance", told)
    checks(blocks[0] < blocks[1], "and its cache is smaller", f"{blocks[0] / blocks[1]:.2f} of it")
    took = [median(each["seconds"], unit=" s") for each in (one, two)]
    print(f"    {took[0]} against {took[1]} for {answer['new']} tokens per stream; {answer['told']}")
