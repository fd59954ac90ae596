"""The command: it prepares the environment, then runs the checks inside it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from serving.environment import ROOT, Environment

ENGINES = ("llama", "peft", "mergekit", "vllm")


def main() -> int:
    parser = argparse.ArgumentParser("python -m serving", description="Students in the engines that people have.")
    parser.add_argument(
        "--cache", type=Path, required=True, help="the folder of the environment, the server, the students"
    )
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}; default: all")
    about = "a folder with adapters `quality` and `diversity`, such as a study's `students`; default: a few steps of training"
    parser.add_argument("--students", type=Path, help=about)
    parser.add_argument("--install", action="store_true", help="prepare the environment, and check nothing")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    engines = given.engines.split(",")
    if unknown := [name for name in engines if name not in ENGINES]:
        parser.error(f"--engines: expected some of {', '.join(ENGINES)}, but got {', '.join(unknown)}.")
    missing = [str(file) for name in ("quality", "diversity") if given.students is not None
               and not (file := given.students / name / "adapter_config.json").is_file()]  # fmt: skip
    if missing:
        parser.error(
            f"--students: expected adapter folders `quality` and `diversity`, but there is no {', no '.join(missing)}."
        )
    environment = Environment(given.cache.resolve())
    if given.inside:
        from serving.checking import check

        return check(environment, engines, given.students)
    environment.prepare(engines)
    if "vllm" in engines and (reason := environment.vllm()):
        print(f"vLLM is skipped: {reason}.")
        engines.remove("vllm")
    if given.install:
        return 0
    began = time.monotonic()
    words = [
        environment.python,
        "-m",
        "serving",
        "--inside",
        "--cache",
        environment.cache,
        "--engines",
        ",".join(engines),
    ]
    words += ["--students", given.students.resolve()] if given.students else []
    code = subprocess.run(list(map(str, words)), cwd=ROOT, env=dict(environment.variables), check=False).returncode
    print(f"{(time.monotonic() - began) / 60:.1f} minutes after installation.")
    return code


if __name__ == "__main__":
    sys.exit(main())
