"""One command for a GPU: first whether it computes what a CPU computes, then how fast it samples and trains.

    python tests/gpu/gpu.py                         on the CUDA device, at most nine minutes
    python tests/gpu/gpu.py --device cpu --tiny     the same code on tiny models: tests the script, and says nothing of speed
    python tests/gpu/gpu.py --device simulated      no GPU: whether every tensor is where a GPU would need it (simulated.py)

It needs no network, no make and no installed package: the interpreter at hand runs it from a checkout. Every phase prints when
it ends and is written into ``runs/gpu.json``. A phase for which a library of the machine is too old or missing is skipped, and
says so. The exit code is 1 when the device computes something wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
import warnings
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests" / "benchmarks", HERE)]


def wanted() -> list[Any]:
    """What pyproject.toml asks for, and peft, which the phases of adapters need."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in (*project["dependencies"], "peft")]


def libraries() -> dict[str, str]:
    """The versions of this machine."""
    found = {}
    for needed in wanted():
        try:
            found[needed.name] = version(needed.name)
        except PackageNotFoundError:
            found[needed.name] = "missing"
    return found


def too_old(found: dict[str, str]) -> list[str]:
    """Libraries that are missing or below what is wanted: phases that need them will be skipped or fail."""
    return [
        f"{needed.name} {found[needed.name]} (expected {needed.specifier or 'any'})"
        for needed in wanted()
        if found[needed.name] == "missing" or not needed.specifier.contains(found[needed.name], prereleases=True)
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Test and measure this package on one device.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu or simulated")
    parser.add_argument("--tiny", action="store_true", help="tiny models, short samples: tests the script")
    parser.add_argument(
        "--seconds", type=float, help="of the run, 530 (simulated: 3600): a phase that runs then is cut"
    )
    parser.add_argument(
        "--out", type=Path, help="the JSON file; default: runs/gpu.json, without a GPU runs/DEVICE.json"
    )
    parser.add_argument("--only", choices=("correctness", "table"), help="one of the two parts")
    given = parser.parse_args(argv)
    is_gpu, is_simulated = given.device.startswith("cuda"), given.device == "simulated"
    if is_simulated and given.only == "table":
        parser.error("a simulated device has no speed: leave out `--only table`")
    found = libraries()
    old = too_old(found)
    print("\n".join(f"{name} {number}" for name, number in found.items()))
    if old:
        print(f"Missing or older than this package asks for, so phases may be skipped: {', '.join(old)}.")
    try:
        import correctness
        import table
        import torch
        from phases import Report

        if is_simulated:
            import simulated

            simulated.simulate()
    except ImportError as error:
        print(f"Nothing can run here: {error}. Install the libraries of pyproject.toml.", file=sys.stderr)
        return 2
    if is_gpu and not torch.cuda.is_available():
        print(
            "Expected a CUDA device, but torch sees none. To test without one on which device tensors lie, use"
            " --device simulated.",
            file=sys.stderr,
        )
        return 2
    if ":" in given.device:  # streams, graphs and peaks of memory are those of the current device
        torch.cuda.set_device(given.device)
    name = torch.cuda.get_device_name(given.device) if is_gpu else given.device
    out = given.out or Path("runs", "gpu.json" if is_gpu else f"{given.device}.json")
    seconds = given.seconds or (3600.0 if is_simulated else 530.0)
    report = Report(out, {"device": name, "libraries": found, "too old": old, "tiny": given.tiny}, seconds)
    if given.only != "table":
        kinds = correctness.Kinds(few=given.tiny)
        if is_simulated:
            kinds.steps, kinds.most = 4, 1.5  # each operation goes through Python, and what it computes is the CPU's
        for phase in correctness.PHASES:
            report.run(
                phase.__name__.replace("_", " "), partial(phase, given.device, kinds), takes=20 * (not given.tiny)
            )
    if given.only != "correctness" and not is_simulated:
        for title, takes, measured in table.phases(given.device, given.tiny):
            report.run(title, measured, takes * (not given.tiny))
    print(json.dumps({phase["name"]: phase["status"] for phase in report.phases}))
    print(f"Written to {out}." + (f" FAILED: {', '.join(report.failed)}." if report.failed else ""))
    return 1 if report.failed else 0


def quieten() -> None:
    """Lightning's and transformers' lines about devices and settings say nothing about the device."""
    import logging

    try:
        from transformers.utils import logging as of_transformers
    except ImportError:  # which main says
        return
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    quieten()
    sys.exit(main())
