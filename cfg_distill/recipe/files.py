"""The files of a recipe: read and merged. Dotted options are merged by the same rules (overrides.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import read_versioned, read_yaml
from cfg_distill.folders import existing_file

SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")
CALLBACKS = ("trainer", "callbacks")
_DICTS_OF_NAMES = ("callbacks", "losses", "metrics", "rewards")
_PARTS = (("trainer",), ("model",), ("data",))
_FILES = (".yaml", ".yml", ".json")


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """The files as one dict: later ones win, dicts are merged key by key, lists are replaced.

    Raises:
        ConfigError: a file that is no YAML mapping, or a study.
    """
    stages = list(merged_in_turn(files))
    return stages[-1] if stages else {}


def merged_in_turn(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The first file, the first two merged, the first three, and so on."""
    whole: dict[str, Any] = {}
    for file in files:
        content = read_versioned(file)
        if "evaluation" in content and content.keys() & {"fits", "baselines"}:
            raise ConfigError(f"`{file}` is a study, and no recipe of one fit. Run `cfg-distill study {file}`.")
        whole = merge(whole, content)
        yield whole


def read_metric_specs(path: str | Path) -> dict[str, Any]:
    """The metrics of a YAML file: name -> class_path and init_args, as they are written.

    Raises:
        ConfigError: there is no such file, or no metric in it.
    """
    specs = read_yaml(existing_file(path, "a metrics file"))
    if not specs:
        raise ConfigError(f"File `{path}`: expected metrics, name -> class_path and init_args, but it is empty.")
    return specs


def with_metrics(study: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a study file, with the metrics themselves where it names a file of them.

    Raises:
        ConfigError: see :func:`read_metric_specs`, under the key.
    """
    evaluation = study.get("evaluation")
    if not isinstance(evaluation, Mapping) or not isinstance(evaluation.get("metrics"), str):
        return dict(study)
    try:
        return {**study, "evaluation": {**evaluation, "metrics": read_metric_specs(evaluation["metrics"])}}
    except ConfigError as error:
        raise ConfigError(error.under("evaluation.metrics")) from error


def merge(base: dict[str, Any], update: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """``update`` over ``base``; neither is changed.

    - A new ``class_path`` discards the old arguments. Without one, arguments may be written without ``init_args``.
    - A key with a plus behind it, ``callbacks+``, appends to a list, or adds to a dict of names.
    - In a dict of names (``callbacks``, ``losses``, ``metrics``, ``rewards``) null removes a name.

    Args:
        base: keys and values.
        update: what wins.
        path: where both stand in the recipe, without ``init_args``.

    Example:
        >>> losses = {"kl": {"class_path": "m.KL", "init_args": {"weight": 1}}, "extra": {"class_path": "m.X"}}
        >>> merge({"losses": losses}, {"losses": {"kl": {"weight": 9}, "extra": None}})
        {'losses': {'kl': {'class_path': 'm.KL', 'init_args': {'weight': 9}}}}
    """
    if "class_path" in base and update and not update.keys() & set(SPEC_KEYS):
        update = {"init_args": update}
    if "class_path" in update and update["class_path"] != base.get("class_path"):
        base = {}
    result = dict(base)
    for raw, value in update.items():
        appends = isinstance(raw, str) and raw.endswith("+")
        key = raw[:-1] if appends else raw
        place = path if key == "init_args" else (*path, key)
        if value is None and key in result and path[-1:] and path[-1] in _DICTS_OF_NAMES:
            del result[key]
        elif appends:
            result[key] = appended(result.get(key), value, place)
        else:
            result[key] = _over(result.get(key), value, place)
    return result


def _over(old: Any, value: Any, place: tuple[str, ...]) -> Any:
    """One value over another.

    Raises:
        ConfigError: a text in place of keys and values. LightningCLI reads it as the name of a file, which would throw away
            all that the recipe says there.
    """
    mapping = place in _PARTS or (isinstance(old, dict) and not set(place[-1:]) & set(_DICTS_OF_NAMES))
    if mapping and isinstance(value, str) and (place == ("trainer",) or value.lower().endswith(_FILES)):
        key = ".".join(map(str, place))
        text = f"expected keys and values, but got `{value}`. Give files by `--config`; in it, put the keys under `{key}:`."
        raise ConfigError(Problem(key, text))
    if place == CALLBACKS:
        value = [value] if class_name(value) else value  # one callback, without a list around it
        old = named(old) if isinstance(value, dict) and isinstance(old, list) else old
    if isinstance(old, str) and isinstance(value, dict) and "class_path" not in value:
        old = {"class_path": old}
    if isinstance(old, dict) and isinstance(value, dict):
        return merge(old, value, place)
    if isinstance(old, dict) and isinstance(value, str) and old.get("class_path") == value:
        return old
    return value


def appended(old: Any, value: Any, place: tuple[str, ...] = ()) -> Any:
    """A list with more members at its end, or a dict of callbacks with more names."""
    if isinstance(value, dict) and "class_path" not in value:
        return _over(old, value, place)
    more = value if isinstance(value, list) else [value]
    if place == CALLBACKS and isinstance(old, dict):
        return old | named(more, taken=old)
    return [*(old if isinstance(old, list) else []), *more]


def named(callbacks: Sequence[Any], taken: Sequence[str] | dict[str, Any] = ()) -> dict[str, Any]:
    """A list of callbacks as a dict of names: each has the name of its class, and a number from the second on.

    Example:
        >>> list(named(["a.Throughput", {"class_path": "b.StudentEMA"}, "c.Throughput"]))
        ['Throughput', 'StudentEMA', 'Throughput_2']
    """
    found: dict[str, Any] = {}
    for callback in callbacks:
        name = class_name(callback) or "callback"
        number = 1
        while (unique := name if number == 1 else f"{name}_{number}") in found or unique in taken:
            number += 1
        found[unique] = callback
    return found


def class_name(spec: Any) -> str:
    """The name of the class that a spec names, without its module; empty where it names none."""
    path = spec.get("class_path") if isinstance(spec, dict) else spec
    return path.rpartition(".")[2] if isinstance(path, str) else ""


def run_name(files: Sequence[Path]) -> str:
    """The folder of the runs of these files, named after the first one."""
    return re.sub(r"[^\w.-]+", "-", files[0].stem) if files else "fit"
