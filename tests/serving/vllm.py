"""vLLM on a CPU: a folder per setting, several in one batch; rows and cache of students against guidance.

vLLM has an environment of its own, without this package: a worker there answers one file of questions.
"""

from __future__ import annotations

import json

from serving.checks import Checks, Texts, compare
from serving.environment import run
from serving.students import TOKENS, Students, encoded

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
    run(worker, env=environment, timeout=600)
    answer = json.loads(place.with_suffix(".out.json").read_text())
    print(f"\nvLLM {answer['version']}, torch {answer['torch']}")
    what = f"{len(FOLDERS)} adapter folders and the base in one batch"
    holds, told = compare(texts, answer["texts"])
    checks(holds, what, told)
    one, two = answer["student"], answer["paired"]
    told = f"{one['rows']} rows and {one['blocks']} blocks of {answer['block']} positions, {two['rows']} and {two['blocks']}"
    checks(
        one["rows"] * 2 == two["rows"], f"{PAIRED} streams: a student's rows are half of those of base + guidance", told
    )
    checks(one["blocks"] < two["blocks"], "and its cache is smaller", f"{one['blocks'] / two['blocks']:.2f} of it")
    print(
        f"    {one['seconds']:.1f} s against {two['seconds']:.1f} s for {answer['new']} tokens per stream, one run each"
    )
