"""A worker of a study: reads a job a line, does it, says how far it is. It imports torch once for many jobs.

Answers, a JSON object a line: ``{"share": 0.5}`` while it works; at the end ``{"peak_memory_mb": ...}``, or
``{"problems": [...]}`` after a user's mistake, or ``{"failed": "..."}`` after another error, whose traceback goes to
the log.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from cfg_distill.errors import ConfigError

Report = Callable[[float], None]


def main() -> None:
    """Serve jobs until standard input ends."""
    # Answers have a pipe of their own: what a library prints goes to the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    if "" not in sys.path:  # a user's own classes, named by class_path, live in files of the current folder
        sys.path.insert(0, "")
    for line in sys.stdin:
        try:
            answer = do(json.loads(line), lambda share: say({"share": share}))
        except ConfigError as error:
            say({"problems": [asdict(problem) for problem in error.problems]})
        except Exception as error:
            traceback.print_exc()
            say({"failed": f"{type(error).__name__}: {error}"})
        else:
            say({"peak_memory_mb": peak_memory_mb()} | answer)
    # Nothing is left to save: without taking torch apart first, the study's lock is free at once.
    sys.stderr.flush()
    os._exit(0)


def do(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """Do one job; returns what it has to say beside being done."""
    from cfg_distill.study import jobs

    return getattr(jobs, job.pop("do"))(report=report, **job) or {}


def peak_memory_mb() -> float:
    """The largest resident memory this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    main()
