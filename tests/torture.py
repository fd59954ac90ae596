"""Kill fits, studies, merges and exports at uniform moments, go on with the same command, and compare with unbroken runs.

    python tests/torture.py --kills 1000 --folder runs/torture

Every command is a fork of this process, in which torch is loaded, so that a kill falls into the work and not into imports.
A line per trial is printed, and kept in FOLDER/trials.jsonl. The same command goes on there after a Ctrl-C, which sums up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked
import torch
import yaml
from safetensors.torch import load_file
from stopped_fits import curves, difference, state, write_recipe
from tiny import tiny_folder

from cfg_distill.study import processes

METRIC = """
from cfg_distill.metrics import TextMetric

class Words(TextMetric):
    axis = "quality"

    def score_group(self, texts):
        return sum(len(text.split()) for text in texts) / len(texts) / 6
"""
MOST_KILLS = 4
"""Of one trial."""
PATIENCE = 600.0
"""Seconds after which a command counts as hung."""


@dataclass(frozen=True)
class Kind:
    """A command to torture.

    Attributes:
        words: the command.
        prepare: writes what it needs into the folder that this process stands in.
        result: what it leaves in a folder, to be compared.
        again: what makes the command go on, where it takes more than the same words.
        weight: how often it is drawn.
    """

    words: list[str]
    prepare: Callable[[Path], object]
    result: Callable[[Path], Any]
    again: list[str] = field(default_factory=list)
    weight: float = 1.0


def of_fit(folder: Path) -> Any:
    """The state after the fit, and its curve over all attempts; several values at one step would be a contradiction."""
    (final,) = folder.glob("runs/tiny/version_*/checkpoints/final.ckpt")
    curve: dict[str, dict[int, set[float]]] = {}
    for run in sorted(folder.glob("runs/tiny/version_*")):
        for name, points in curves(run).items():
            for step, values in points.items():
                curve.setdefault(name, {}).setdefault(step, set()).update(values)
    unfinished = (final.parents[1] / ".unfinished").exists()
    return {"state": state(final), "curve": curve, "unfinished": unfinished, "left": _left(final.parent)}


def of_model(folder: Path) -> Any:
    """The weights and the files of a model that was written."""
    out = folder / "out"
    files = sorted(path.name for path in out.iterdir())
    return {"files": files, "weights": load_file(out / "model.safetensors"), "left": _left(folder)}


def of_study(folder: Path) -> Any:
    """The front without times, and the weights of students and merges."""
    front = json.loads((folder / "out/front.json").read_text())
    systems = [{key: system[key] for key in ("name", "kind", "quality", "diversity")} for system in front["systems"]]
    weights = {
        str(file.relative_to(folder)): load_file(file) for file in sorted(folder.glob("out/*/*/model.safetensors"))
    }
    return {"systems": systems, "claims": front["claims"], "weights": weights}


def _left(folder: Path) -> list[str]:
    """Files that a killed process left, and that the next one should have removed."""
    return sorted(path.name for path in folder.iterdir() if path.name.endswith((".partial", ".replaced")))


def prepare_fit(folder: Path) -> None:
    write_recipe(folder, tiny_folder(folder / "model"))


def prepare_models(folder: Path) -> None:
    for number in (1, 2):
        tiny_folder(folder / f"model{number}", seed=number)


def prepare_checkpoint(folder: Path) -> None:
    from tiny_fits import batches, student_of, trainer

    fitted = trainer([], root=folder)
    fitted.fit(student_of(tiny_folder(folder / "model")), batches(2))
    fitted.save_checkpoint(folder / "last.ckpt")


def prepare_study(folder: Path) -> None:
    write_recipe(folder, tiny_folder(folder / "model"), max_steps=6)
    (folder / "report.txt").write_text("w5\nw6 w7\nw8 w9\n")
    content = yaml.safe_load((folder / "tiny.yaml").read_text())
    del content["trainer"]["callbacks"]["final"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    study = {
        "out": "out",
        "fits": {
            "quality": {"config": "tiny.yaml"},
            "diversity": {"config": "tiny.yaml", "start": "quality", "overrides": {"model.guidance.scale": 2.0}},
        },
        "merges": {"half": {"models": ["quality", "diversity"], "weights": [0.5, 0.5]}},
        "baselines": {"base": {"model": "model"}, "guidance 2": {"model": "model", "guidance": 2.0}},
        "parallel": 1,
        "evaluation": {
            "prompts": "report.txt",
            "samples": 3,
            "seeds": [0],
            "max_new_tokens": 6,
            "metrics": {
                "distinct": {"class_path": "cfg_distill.metrics.DistinctN"},
                "words": {"class_path": "mine.Words"},
            },
            "headline": {"quality": "words", "diversity": "distinct"},
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (folder / "mine.py").write_text(METRIC)


KINDS = {
    "fit": Kind(["fit", "--config", "tiny.yaml"], prepare_fit, of_fit, ["--ckpt_path", "last"], 4.0),
    "study": Kind(["study", "study.yaml"], prepare_study, of_study),
    "merge": Kind(
        ["merge", "--models", "model1", "model2", "--weights", "0.3", "0.7", "--out", "out"],
        prepare_models, of_model, ["--overwrite"], 2.0,
    ),
    "export": Kind(
        ["export", "--checkpoint", "last.ckpt", "--out", "out"], prepare_checkpoint, of_model, ["--overwrite"], 2.0
    ),
}  # fmt: skip


class Torture:
    """Trials in a folder.

    Args:
        folder: for everything; what it holds of an earlier call counts.
        seed: of kinds and moments.
        kinds: to draw from.
    """

    def __init__(self, folder: Path, seed: int = 0, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
        self.folder = folder.resolve()
        self.seed = seed
        self.kinds = kinds
        self.file = self.folder / "trials.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self.trials: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._whole: dict[str, tuple[Any, float]] = {}

    @property
    def kills(self) -> int:
        """Processes killed so far, in all trials."""
        return sum(trial["kills"] for trial in self.trials)

    def run(self, kills: int) -> None:
        """Trials until so many processes have been killed."""
        weights = [KINDS[name].weight for name in self.kinds]
        while self.kills < kills:
            number = len(self.trials)
            draw = random.Random(f"{self.seed} {number}")
            name = draw.choices(self.kinds, weights)[0]
            trial = {"trial": number, "kind": name} | self._trial(name, self.folder / f"trial_{number}", draw)
            self.trials.append(trial)
            with self.file.open("a") as file:
                file.write(json.dumps(trial) + "\n")
            moments = ", ".join(f"{moment:.2f}" for moment in trial["moments"]) or "no moment"
            outcome = trial["found"] or "equal"
            print(f"{self.kills}/{kills} kills: trial {number}, {name}, at {moments} of the run: {outcome}", flush=True)

    def summary(self) -> str:
        """A line per kind."""
        lines = ["| command | trials | SIGKILLs | equal to the unbroken run | other |", "|---|---|---|---|---|"]
        for name in self.kinds:
            ours = [trial for trial in self.trials if trial["kind"] == name]
            wrong = Counter(trial["found"] for trial in ours if trial["found"])
            kills, equal = sum(trial["kills"] for trial in ours), sum(not trial["found"] for trial in ours)
            lines.append(f"| {name} | {len(ours)} | {kills} | {equal} | {dict(wrong) or '-'} |")
        return "\n".join(lines)

    def _trial(self, name: str, place: Path, draw: random.Random) -> dict[str, Any]:
        kind = KINDS[name]
        whole, seconds = self._unbroken(name)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.folder / f"source_{name}", place, symlinks=True)
        moments: list[float] = []
        words, code = kind.words, None
        for _ in range(draw.randint(1, MOST_KILLS)):
            moment = draw.uniform(0, 1.02)
            code = self._killed(words, place, moment * seconds)
            words = kind.words + kind.again
            if code is not None:
                break
            moments.append(moment)
        if code is None:
            (code,) = forked.wait([self._start(words, place)], PATIENCE)
        found = self._compared(kind, whole, place, code)
        if not found:
            shutil.rmtree(place)
        return {"kills": len(moments), "moments": moments, "found": found}

    def _compared(self, kind: Kind, whole: Any, place: Path, code: int | None) -> str:
        if code != 0:
            return f"exit code {code}" if code is not None else "hangs"
        try:
            return difference(kind.result(place), whole)
        except (OSError, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"

    def _unbroken(self, name: str) -> tuple[Any, float]:
        """The result of a run that nothing stops, and its time: the faster of two, which also must be equal."""
        if name not in self._whole:
            source = self.folder / f"source_{name}"
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            before = Path.cwd()
            os.chdir(source)
            (code,) = forked.wait(
                [_in_fork(lambda: KINDS[name].prepare(Path(".")), self.folder / "prepare.log")], PATIENCE
            )
            os.chdir(before)
            assert code == 0, f"see {self.folder / 'prepare.log'}"
            results, times = [], []
            for number in (1, 2):
                place = self.folder / f"whole_{name}_{number}"
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(source, place)
                began = time.monotonic()
                (code,) = forked.wait([self._start(KINDS[name].words, place)], PATIENCE)
                times.append(time.monotonic() - began)
                assert code == 0, f"see {place / 'log'}"
                results.append(KINDS[name].result(place))
            assert not difference(*results), difference(*results)
            self._whole[name] = results[0], min(times)
            print(f"unbroken {name}: {min(times):.1f} s, twice the same", flush=True)
        return self._whole[name]

    def _start(self, words: list[str], place: Path) -> int:
        return forked.fork(words, place, place / "log")

    def _killed(self, words: list[str], place: Path, after: float) -> int | None:
        """Kill a command after a time; its exit code if it has ended by then, else None."""
        process = self._start(words, place)
        until = time.monotonic() + after
        while time.monotonic() < until:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        return None if code == -signal.SIGKILL else code


def _in_fork(work: Callable[[], object], log: Path) -> int:
    """Do some work in a fork: this process shall stay as it is."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            with log.open("ab") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            work()
            code = 0
        finally:
            os._exit(code)
    return process


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Kill commands at uniform moments, and compare what they leave in the end."
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("runs/torture"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    processes.subprocess.Popen = forked.ForkedProcess  # type: ignore[misc,assignment]
    torture = Torture(asked.folder, asked.seed, tuple(asked.kinds))
    try:
        torture.run(asked.kills)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.")
    print(torture.summary())
    sys.exit(any(trial["found"] for trial in torture.trials))


if __name__ == "__main__":
    main()
