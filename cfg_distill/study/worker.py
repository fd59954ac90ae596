"""A worker of a study: reads one job per line, does it, reports how far it is. It imports torch once for many jobs.

Its answers are JSON objects, one per line: ``{"done": 3, "total": 8}`` while it works; at the end ``{"peak_memory_mb": ...}``,
or ``{"problems": [...]}`` after a user's mistake, or ``{"failed": "..."}`` after another error, whose traceback goes to the
log.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from cfg_distill.errors import ConfigError
from cfg_distill.files import resident_peak
from cfg_distill.study.checking import Report
from cfg_distill.study.jobs import Job, decoded


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
            answer = do(decoded(line), lambda done, total: say({"done": done, "total": total}))
        except ConfigError as error:
            say({"problems": [{"key": each.key, "text": each.text, "prefix": each.prefix} for each in error.problems]})
        except Exception as error:
            traceback.print_exc()
            say({"failed": f"{type(error).__name__}: {error}"})
        else:
            say({"peak_memory_mb": peak_memory_mb()} | answer)
    # Nothing is left to save: without taking torch apart first, the study's lock is free at once.
    sys.stderr.flush()
    os._exit(0)


def do(job: Job, report: Report) -> dict[str, Any]:
    """Do one job, without the bars of transformers in the log."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return job.run(report)


def peak_memory_mb() -> float:
    """The largest resident memory this process ever had."""
    return resident_peak() / 2**20


if __name__ == "__main__":
    main()
