"""The dial of an adapter folder: what its change is multiplied by, and what that means."""

from __future__ import annotations

from cfg_distill.errors import Problem
from cfg_distill.folders.history import history_of


def problems_of_dial(model: str, dial: float | None, adapter: bool, key: str = "dial") -> list[Problem]:
    """Why a model cannot be sampled at a setting of the dial.

    Args:
        model: its name.
        dial: the setting; None for a model as it is.
        adapter: whether the model is an adapter.
        key: of the setting.
    """
    if dial is None:
        return []
    found = []
    if not 0 <= dial < float("inf"):
        found.append(Problem(key, f"expected a number of at least 0 (1 is all of the adapter), but got {dial:g}."))
    if not adapter:
        text = f"expected an adapter folder, whose change is scaled, but `{model}` is a whole model. Leave it out."
        found.append(Problem(key, text))
    return found


def remarks_on_dial(model: str, dial: float | None) -> list[Problem]:
    """What a setting of the dial means for an adapter, under the key ``dial``."""
    made = history_of(model)
    if dial is None:
        if made is None or not made.dialled or made.dial_high == 1:
            return []
        dial = 1.0  # all of the adapter, which is beyond what was trained
    if made is None or not made.dialled:
        text = (
            f"`{model}` was not trained with a dial. Its change times {dial:g} is a model between it and its base, of no known"
            " guidance."
        )
        return [Problem("dial", text)]
    gamma = "" if made.guidance is None else f", which is guidance {1 + dial * (made.guidance - 1):g}"
    is_beyond = dial > made.dial_high or 0 < dial < made.dial_low  # 0 is the base, whatever was trained
    beyond = f". It was trained from {made.dial_low:g} to {made.dial_high:g}" if is_beyond else ""
    return [Problem("dial", f"`{model}` at {dial:g}{gamma}{beyond}.")]
