"""How names, numbers and marks are written on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml
from markupsafe import Markup, escape


def pixels(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def words(name: str) -> str:
    return name.replace("_", " ")


def with_names(text: str) -> Markup:
    """Names in backticks as bold text; the rest is escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<b>\1</b>", str(escape(text))))


def interval(value: Mapping[str, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"[{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]".replace("-", "−")


def signed(value: Mapping[str, float]) -> str:
    """A difference and its interval.

    Example:
        >>> signed({"mean": 0.01, "low": -0.002, "high": 0.02})
        '+0.010 [−0.002, +0.020]'
    """
    return f"{value['mean']:+.3f}".replace("-", "−") + f" {interval(value, signed=True)}"


def seconds(value: Any) -> str:
    """Seconds per sample: a number, or one for each number of rows."""
    if isinstance(value, Mapping):
        return ", ".join(f"{seconds(each)} at {rows}" for rows, each in value.items())
    return f"{value:.3g}"


def cell(value: Any) -> str:
    if isinstance(value, Mapping) and "mean" in value:
        return f"{value['mean']:.3f} {interval(value)}"
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "–"
    return "–" if value is None else str(value)


def as_yaml(study: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(study), sort_keys=False, allow_unicode=True, width=100) if study else ""


def marker(look: str, x: float, y: float, quiet: bool) -> Markup:
    """The mark of a point: a circle, a square, a triangle or a diamond, so that it differs without its colour."""
    size = 3.4 if quiet else 5.2
    side, slope = f"{2 * size:.1f}", f"{size:.1f}"
    paths = {
        "guidance": f"M{x - size:.1f} {y - size:.1f}h{side}v{side}h-{side}z",
        "base": f"M{x:.1f} {y - 1.25 * size:.1f}l{1.2 * size:.1f} {2.1 * size:.1f}h-{2.4 * size:.1f}z",
        "other": f"M{x:.1f} {y - size:.1f}l{slope} {slope}l-{slope} {slope}l-{slope} -{slope}z",
    }
    if look == "student":
        return Markup(f'<circle class="mark student" cx="{x:.1f}" cy="{y:.1f}" r="{slope}"/>')
    return Markup(f'<path class="mark {escape(look)}" d="{paths[look]}"/>')
