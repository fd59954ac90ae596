"""A plan as a table for people."""

from __future__ import annotations

from dataclasses import replace

from cfg_distill.planning.machines import GB
from cfg_distill.planning.plan import ROOM, Plan, Split

_SCALES = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (0.0, "MFLOP"))


def table(plan: Plan) -> str:
    """All of a plan, to be printed."""
    asked, memory = plan.asked, plan.device.memory
    several = f"{asked.devices} x " if asked.devices > 1 else ""
    lines = [
        f"{plan.name} on {several}{plan.device.name}, {memory / GB:.3g} GB each: {plan.about}",
        "",
        _parameters(plan),
        "",
        f"Memory of a device, in GB ({asked.strategy}, micro-batch of {asked.micro_batch} samples)",
        *_memory(asked),
        "",
        f"Work of a step of one device, in {plan.dtype}",
        *_work(plan),
        "",
        *_verdict(plan),
    ]
    return "\n".join([*lines, *(f"Note: {note}" for note in plan.notes)])


def _parameters(plan: Plan) -> str:
    counts = plan.parameters
    text = f"Parameters: {_count(counts['student'])} in the student, {_count(counts['trained'])} of them trained"
    text += "".join(
        f"; {_count(counts[name])} in {name}" for name in ("text encoder, codec", "embedders") if counts[name]
    )
    return f"{text}."


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.3g} million"


def _memory(split: Split) -> list[str]:
    rows: list[tuple[str, int, str]] = [(name, size, "") for name, size in split.always.items()]
    rows.append(("in every phase", sum(split.always.values()), "="))
    for name, phase in split.phases.items():
        rows.append((name, phase.bytes, "+" if name == split.largest else ""))
        rows += [(f"    {part}", size, "") for part, size in phase.held.items() if size]
    rows.append(("peak", split.peak, "="))
    return [f"  {name:32}{size / GB:9.2f}  {mark}".rstrip() for name, size, mark in rows]


def _work(plan: Plan) -> list[str]:
    lines = [f"  {'':12}{'compute':>14}{'read, written':>16}{'at least':>14}"]
    for name, seconds in plan.seconds.items():
        phase = plan.asked.phases[name]
        lines.append(f"  {name:12}{_flops(phase.flops):>14}{phase.traffic / GB:>13.1f} GB{_time(seconds):>14}")
    lines.append(f"  {'step':12}{'':14}{'':16}{_time(sum(plan.seconds.values())):>14}")
    return lines


def _flops(flops: float) -> str:
    scale, name = next((scale or 1e6, name) for scale, name in _SCALES if flops >= scale)
    return f"{flops / scale:.3g} {name}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _verdict(plan: Plan) -> list[str]:
    asked, fitting, memory = plan.asked, plan.fitting, plan.device.memory
    lines = [
        f"It {'fits' if plan.fits else 'does not fit'}: {asked.peak / GB:.2f} GB of {memory / GB:.3g} GB, of which {ROOM:.0%}"
        f" are planned. The peak is in the phase `{asked.largest}`."
    ]
    if fitting is None:
        lines.append(
            "Nothing fits, not even a micro-batch of 1. Train a `model.generator.lora` (its base may have `dtype: bfloat16`),"
            " sample fewer or shorter samples, leave out StudentEMA, or take more or larger devices."
        )
    elif replace(fitting, always={}, phases={}) != replace(asked, always={}, phases={}):
        settings = f"--model.micro_batch {fitting.micro_batch}"
        if fitting.gather == "layer" != asked.gather:
            settings = f"--model.execution.gather layer {settings}"
        if fitting.strategy != asked.strategy:
            settings = f"--trainer.strategy {fitting.strategy} {settings}"
        lines.append(f"The most that fits: {settings} ({fitting.peak / GB:.2f} GB).")
    return lines
