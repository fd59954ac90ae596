"""The ledger of a study: which steps are done, which files a step may remove, and whether an unfinished one goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cfg_distill
from cfg_distill.errors import Problem
from cfg_distill.files import write_text
from cfg_distill.study.record import digest, source_digest
from cfg_distill.study.steps import Step


class Ledger:
    """The steps that were done before, one small file per step. An entry counts while the outputs are as the step left them.

    Args:
        out: the folder of the study.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / "steps"
        self.source = source_digest()
        self.other_code: list[str] = []
        """Steps that were kept although the code of this package has changed since."""
        self.own_code: dict[tuple[str, str], list[str]] = {}
        """Kind of step, and names of the user's own files that have changed since -> the steps that were kept."""

    def _file(self, label: str) -> Path:
        return self.folder / f"{label}.json"

    def entry(self, label: str) -> dict[str, Any]:
        """The notes about a step; empty when there are none."""
        file = self._file(label)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def fingerprint(self, step: Step) -> str:
        """A digest of all settings and files that decide a step's result. The steps before it must be done.

        Code is no part of it: a comment that is put right would make a week of training stale.
        """
        before = [self.entry(need)["made"] for need in step.needs]
        text = json.dumps([step.config, before, cfg_distill.__version__], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_done(self, step: Step) -> bool:
        """Whether a step may be skipped."""
        entry = self.entry(step.label)
        if entry.get("state") != "done" or entry["fingerprint"] != self.fingerprint(step):
            return False
        if not all(path.exists() for path in step.outputs) or entry["made"] != digest(step.outputs):
            return False
        if entry["source"] != self.source:
            self.other_code.append(step.label)
        self._tell_own_code(step, entry)
        return True

    def _tell_own_code(self, step: Step, entry: Mapping[str, Any]) -> None:
        """Say, once for each kind of step, which of the user's own files have changed since it was made."""
        before = entry.get("code", step.code)  # earlier versions noted none
        changed = [name for name in sorted({*before, *step.code}) if before.get(name) != step.code.get(name)]
        if not changed:
            return
        files = ", ".join(f"`{name}`" for name in changed)
        kept = self.own_code.setdefault((step.kind, files), [])
        kept.append(step.label)
        if len(kept) == 1:
            text = f"Note: {files} changed after `{step.label}` was made, and maybe after other steps of this kind."
            print(f"{text} They are kept. To make them again: --remake {step.kind}", file=sys.stderr, flush=True)

    def problems_of_outputs(self, steps: Iterable[Step], inputs: Mapping[str, Path]) -> list[Problem]:
        """Files that a step would replace although this study did not make them, and inputs that it would remove.

        Args:
            steps: of the study.
            inputs: what the study reads: text in its file -> path.
        """
        problems = []
        places = {text: path.resolve() for text, path in inputs.items()}
        for step in steps:
            for path in dict.fromkeys([*step.outputs, *step.traces]):
                if path.exists() and not self.entry(step.label):
                    text = f"`{path}` exists, and this study did not make it. Move it away, or name another folder."
                    problems.append(Problem("out", text))
                within = [text for text, place in places.items() if place.is_relative_to(path.resolve())]
                problems += [
                    Problem(
                        "out",
                        f"the step `{step.label}` writes `{path}`, and would replace `{text}`, which the study reads. Move"
                        " one of them, or name another folder.",
                    )
                    for text in within
                ]
        return problems

    def begin(self, step: Step) -> bool:
        """Note that a step begins. Its traces are kept only if the same step left them and can go on from them.

        Outputs and traces are removed only where an entry says that this study made them:
        :meth:`problems_of_outputs` has refused all others.
        """
        entry, fingerprint = self.entry(step.label), self.fingerprint(step)
        goes_on = entry.get("state") == "begun" and entry["fingerprint"] == fingerprint
        if entry and not goes_on:
            for path in [*step.traces, *step.outputs]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        earlier = entry.get("seconds", 0.0) if goes_on else 0.0
        begun = {"state": "begun", "fingerprint": fingerprint, "source": self.source, "seconds": earlier}
        self._write(step, begun | ({"code": step.code} if step.code else {}))
        return goes_on

    def reopen(self, step: Step) -> None:
        """Note that a done step is to be made again. The note outlasts this run: a run that is stopped goes on with it."""
        if (entry := self.entry(step.label)).get("state") == "done":
            self._write(step, entry | {"state": "reopened"})

    def pause(self, step: Step, seconds: float) -> None:
        """Note how long an unfinished step has run so far."""
        entry = self.entry(step.label)
        self._write(step, entry | {"seconds": entry["seconds"] + seconds})

    def finish(self, step: Step, seconds: float, peak_memory_mb: float) -> None:
        """Note that a step is done, what it made and what it cost."""
        entry = self.entry(step.label)
        cost = {"seconds": round(entry["seconds"] + seconds, 2), "peak_memory_mb": round(peak_memory_mb)}
        self._write(step, entry | cost | {"state": "done", "made": digest(step.outputs)})

    def _write(self, step: Step, entry: dict[str, Any]) -> None:
        write_text(self._file(step.label), json.dumps(entry, indent=1) + "\n")


@contextmanager
def amended(out: Path, label: str, outputs: Sequence[Path]) -> Iterator[None]:
    """Let the block change outputs of a step. A step that was done before stays done, so a study run again keeps the change.

    Args:
        out: the folder of the study.
        label: of the step; a folder without such a step is left as it is.
        outputs: of the step, in its order.
    """
    file = out / "steps" / f"{label}.json"
    entry = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    was_done = (
        entry.get("state") == "done" and all(path.exists() for path in outputs) and entry["made"] == digest(outputs)
    )
    yield
    if was_done:
        write_text(file, json.dumps(entry | {"made": digest(outputs)}, indent=1) + "\n")
