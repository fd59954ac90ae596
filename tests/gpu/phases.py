"""What was found on a device, phase by phase: printed as each ends, and written, so that a cut run keeps what it had."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIMULATED = "simulated"
"""The name of the device of ``simulated.py``, which is none of torch's own."""


class Skip(Exception):
    """A library is missing or too old for a phase: which, and what it would take."""


class Wrong(Exception):
    """The device computes something else than it should."""


class Cut(Exception):
    """The time of the run is over in the middle of a phase."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise :class:`Cut` in the block when the time is over; only in the main thread of a system that has such an alarm."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def cut(*_: Any) -> None:
        raise Cut

    before = signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def device_of_trainer(device: str) -> dict[str, Any]:
    """Settings of a Lightning trainer on one device; the strategy only where the device has one of its own.

    Example:
        >>> device_of_trainer("cuda:1"), device_of_trainer("cpu")
        ({'accelerator': 'gpu', 'devices': [1]}, {'accelerator': 'cpu', 'devices': 1})
    """
    if device == SIMULATED:
        import simulated

        return {"strategy": simulated.Strategy(), "devices": 1}
    if not device.startswith("cuda"):
        return {"accelerator": "cpu", "devices": 1}
    return {"accelerator": "gpu", "devices": [int(device.partition(":")[2] or 0)]}


class Report:
    """All phases of a run.

    Args:
        out: the JSON file.
        about: device and libraries.
        seconds: when these are over, the phase that runs is cut, and no further one begins.
    """

    def __init__(self, out: Path, about: dict[str, Any], seconds: float) -> None:
        self.out, self.about = out, about
        self.began, self.until = time.monotonic(), time.monotonic() + seconds
        self.phases: list[dict[str, Any]] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    @property
    def failed(self) -> list[str]:
        """The phases that found something wrong."""
        return [phase["name"] for phase in self.phases if phase["status"] == "FAILED"]

    def run(self, name: str, phase: Callable[[], dict[str, Any]], takes: float = 0.0) -> None:
        """Run a phase, print and write what came of it. Whatever it raises is written, and the next phase begins.

        When the time of the run is over, the phase is cut: what it had found is lost, and what earlier ones found is written.

        Args:
            name: in words.
            phase: returns what it found.
            takes: seconds that it needs; with fewer left it does not begin.
        """
        if self.left < takes:
            self._add(name, "not run", 0.0, {}, f"{self.left:.0f} s are left, and it takes {takes:.0f}")
            return
        began, found, status, why = time.monotonic(), {}, "ok", ""
        try:
            with at_most(self.left):
                found = phase()
        except Cut:
            status, why = "cut", "the time of the run is over"
        except (Skip, ImportError) as error:
            status, why = "skipped", str(error)
        except Wrong as error:
            status, why = "FAILED", str(error)
        except Exception as error:  # a phase that breaks must not take the others with it
            status, why = "FAILED", f"{type(error).__name__}: {error}"
            found = {"traceback": traceback.format_exc().splitlines()[-12:]}
        self._add(name, status, time.monotonic() - began, found, why)

    def _add(self, name: str, status: str, seconds: float, found: dict[str, Any], why: str) -> None:
        self.phases.append({"name": name, "status": status, "seconds": round(seconds, 1), "why": why, "found": found})
        self._write()
        print(
            f"[{time.monotonic() - self.began:5.0f} s] {status:8}{name} ({seconds:.1f} s){f': {why}' if why else ''}",
            flush=True,
        )
        for key, value in found.items():
            if key != "traceback":
                print(f"             {key}: {_shown(value)}", flush=True)

    def _write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        beside = self.out.with_suffix(".part")
        beside.write_text(json.dumps({"about": self.about, "phases": self.phases}, indent=1) + "\n")
        os.replace(beside, self.out)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
