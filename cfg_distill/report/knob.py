"""A point of the knob that no study merged: the two students of a study, and the weights for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.report.results import results_folder
from cfg_distill.study.record import begun_with


class Line(NamedTuple):
    """The line between two models, as a study merges them."""

    models: list[str]
    method: str
    start: str | None


def line_of(study: str | Path) -> Line:
    """The two models that a study merges, its method, and the model that both were trained from where the method needs it.

    Args:
        study: the folder of the results, or the study file.

    Raises:
        ConfigError: there is no study in it, it merges no two models or several pairs of them, or they are not there.
    """
    folder = results_folder(study)
    record = begun_with(folder)
    if record is None:
        raise ConfigError(Problem("study", f"expected a study in `{folder}`, but it has none. Run `cfg-distill study` first."))
    content: Mapping[str, Any] = record["study"]
    merges = [each for each in content.get("merges", {}).values() if len(each["models"]) == len(each["weights"]) == 2]
    fits = list(content.get("fits", {}))
    pairs = {tuple(each["models"]) for each in merges} or ({tuple(fits)} if len(fits) == 2 else set())
    if len(pairs) != 1:
        text = f"expected a study that merges two models, but `{folder}` merges {len(pairs) or 'no'} pairs. Give `--models`."
        raise ConfigError(Problem("study", text))
    first = merges[0] if merges else {"method": "lerp", "start": ""}
    (names,) = pairs

    def place(name: str) -> str:
        for kind, known in (("students", fits), ("merges", content.get("merges", {}))):
            if name in known:
                return str(folder / kind / name)
        return name

    models = [place(name) for name in names]
    missing = [each for name, each in zip(names, models, strict=True) if each != name and not Path(each).is_dir()]
    if missing:
        text = f"expected its students, but `{missing[0]}` is not there. Run the study again: it remakes what is missing."
        raise ConfigError(Problem("study", text))
    return Line(models, first["method"], place(first["start"]) if first.get("start") else None)
