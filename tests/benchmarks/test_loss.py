"""Head, divergence and gradients: time and peak extra memory against the naive way, TRL and Liger."""

import statistics
from contextlib import ExitStack

import pytest
from loss_sides import POSITIONS, SIDES, VOCABULARY
from measure import RUNS, Row, interleaved, report
from worker import Worker

pytestmark = pytest.mark.bench


def test_loss() -> None:
    with ExitStack() as stack:
        measure({name: stack.enter_context(Worker(f"loss_sides:{name}_side")) for name in [*SIDES, "floor"]})


def measure(workers: dict[str, Worker]) -> None:
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in workers}

    def run(name: str) -> float:
        answers[name].append(workers[name].tell("run"))
        return answers[name][-1]["seconds"]

    # The first run of a process brings in its library: it is the warm-up.
    seconds = interleaved({name: lambda name=name: run(name) for name in workers})
    for name in SIDES:
        for what in ("value", "gradient"):
            assert answers[name][-1][what] == pytest.approx(answers["naive"][-1][what], rel=1e-2), (name, what)

    def row(what: str, measured: dict[str, float], name: str, bar: float, aim: float, unit: str, scale: float) -> Row:
        details = f"{measured['ours'] * scale:.0f} {unit} : {measured[name] * scale:.0f} {unit}"
        against = "its matrix products alone" if name == "floor" else name
        return Row(what, against, measured["ours"] / measured[name], bar, aim, True, details)

    extra = {name: statistics.median(answer["extra"] for answer in answers[name][-RUNS:]) for name in SIDES}
    rows = [
        row("loss: peak extra memory", extra, "naive", 1 / 8, 1 / 11, "MiB", 2**-20),
        row("loss: peak extra memory", extra, "liger", 1 / 3, 1 / 3, "MiB", 2**-20),
        row("loss: time", seconds, "trl", 0.40, 0.33, "ms", 1e3),
        row("loss: time", seconds, "liger", 0.50, 0.40, "ms", 1e3),
        # What no implementation can be below: where it is above a bar on another row, that bar is out of reach there.
        row("loss: time", seconds, "floor", 1.7, 1.35, "ms", 1e3),
    ]
    report("loss", rows, f"Loss with its head, {POSITIONS} positions, vocabulary {VOCABULARY}")
