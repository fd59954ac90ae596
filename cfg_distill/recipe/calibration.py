"""``weight: auto`` of a loss: short for the callback that calibrates it. Keys and values only, no torch in here."""

from __future__ import annotations

import copy
from typing import Any

from cfg_distill.recipe.files import CALLBACKS, merge, named

AUTO = "auto"
CALLBACK = "cfg_distill.callbacks.BetaCalibration"


def calibrated(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe with the callback in place of ``weight: auto``, and what to tell the user.

    The weight is 0 until the first measurement, one step later. The callback has the name ``beta_NAME``, so a recipe can change
    its arguments: ``trainer.callbacks.beta_NAME.ratio``.

    Args:
        values: of a recipe; they are not changed.

    Example:
        >>> losses = {"kl": {"class_path": "m.KL"}, "diversity": {"class_path": "m.D", "init_args": {"weight": "auto"}}}
        >>> changed, _ = calibrated({"model": {"losses": losses}})
        >>> changed["model"]["losses"]["diversity"]["init_args"], changed["trainer"]["callbacks"]["beta_diversity"]["init_args"]
        ({'weight': 0.0}, {'loss': 'diversity', 'reference': 'kl'})
    """
    automatic = [name for name, spec in _losses(values).items() if _settings(spec).get("weight") == AUTO]
    if not automatic:
        return values, []
    values = copy.deepcopy(values)
    notes = []
    for name in automatic:
        losses = _losses(values)
        _settings(losses[name])["weight"] = 0.0
        reference = next((other for other in losses if other not in automatic), "")
        trainer = values.setdefault(CALLBACKS[0], {})
        given = trainer.get(CALLBACKS[1])
        callbacks = given if isinstance(given, dict) else named(given or [])
        spec = {"class_path": CALLBACK, "init_args": {"loss": name, "reference": reference}}
        trainer[CALLBACKS[1]] = {**callbacks, f"beta_{name}": merge(spec, _as_keys(callbacks.get(f"beta_{name}")))}
        ratio = _settings(trainer[CALLBACKS[1]][f"beta_{name}"]).get("ratio", 0.5)
        notes.append(
            f"The weight of `{name}` is calibrated: its gradient shall be {ratio} times as long as that of `{reference}`"
            f" (`trainer.callbacks.beta_{name}.ratio`)."
        )
    return values, notes


def _losses(values: dict[str, Any]) -> dict[str, Any]:
    """The losses by name; none of a recipe that has no dict of them."""
    model = values.get("model")
    model = _settings(model) if isinstance(model, dict) else {}
    losses = model.get("losses")
    return losses if isinstance(losses, dict) else {}


def _settings(spec: Any) -> dict[str, Any]:
    """The arguments of a class, which may be written without ``init_args``."""
    if not isinstance(spec, dict):
        return {}
    inside = spec.get("init_args")
    return inside if isinstance(inside, dict) else spec


def _as_keys(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}
