"""How a model folder was made: kept in its ``cfg_distill.json`` for programs, told in its README.md for people.

No path of this machine is written: a folder is told by its name.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import expanded, parse_yaml
from cfg_distill.folders.names import base_of, is_adapter, source
from cfg_distill.folders.packages import PACKAGED
from cfg_distill.folders.profile import HISTORY, PROFILE

CARD = "README.md"
_LICENCES = {
    "ACE-Step/": "mit",
    "facebook/musicgen-": "cc-by-nc-4.0",
    "m-a-p/YuE-": "apache-2.0",
    "nari-labs/Dia-": "apache-2.0",
    "sesame/csm-": "apache-2.0",
}
"""Of hub models that this package is made for: transformers does not download their cards.

Read in the projects' own repositories: facebookresearch/audiocraft, model_cards/MUSICGEN_MODEL_CARD.md ("model weights are
released under CC-BY-NC 4.0"); nari-labs/dia, README.md ("licensed under the Apache License 2.0").
"""
_FREE = ("apache", "mit", "bsd")
MEANS = ("lerp", "weighted", "soup", "ema")
"""Methods whose weights sum to 1, of the models alone: the mean of adapters with a dial has the dial, too."""
DISTILLED = {"cfg-distill", "classifier-free-guidance", "distillation"}
"""Tags of a model card that say that the model carries guidance."""
_HEAD = re.compile(r"\A---\n(.*?)^---$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class History:
    """What made a model folder.

    Attributes:
        base: the start model, by its hub name, its shipped name or the name of its folder.
        hub: the hub name of the start model, or of the model that it was made from; empty without one.
        licence: of the start model, as the hub spells it; empty where it is not known.
        base_is_on_hub: whether others can load the very base: an adapter is of use to nobody else without it.
        distilled: whether the model carries guidance.
        guidance: the scale of the teacher's guidance (gamma); None where it is not known.
        losses: name -> class and weight. The weight of the diversity reward is beta.
        start: the student that the fit began from; empty where it began from the base.
        recipe: the file that was fitted.
        step: optimiser steps; None where they are not known.
        weights: ``raw`` or ``ema``; empty for a merge.
        method: of a merge; empty for an export.
        shares: of a merge: its weights.
        parents: of a merge: name -> history of each model.
        dialled: whether the scale of the adapter is a dial for guidance: none at 0, ``guidance`` at 1.
        dial_low: the lowest setting of the dial that was trained.
        dial_high: the highest.
        teacher_system: the system message that the teacher read, and the student did not; empty without one.
        relative_to: the student that an adapter is the difference to; empty where it is no difference.
        measured: the point of a study's front: quality, diversity and guards, each metric -> mean, low, high; how it was
            sampled; and the same of the guided base (``against``). Empty without.
        versions: of the packages that wrote the folder.
    """

    base: str
    hub: str = ""
    licence: str = ""
    base_is_on_hub: bool = False
    distilled: bool = True
    guidance: float | None = None
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    start: str = ""
    recipe: str = ""
    step: int | None = None
    weights: str = ""
    method: str = ""
    shares: Sequence[float] = field(default_factory=list)
    parents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dialled: bool = False
    dial_low: float = 0.0
    dial_high: float = 1.0
    teacher_system: str = ""
    relative_to: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def knob(self) -> float | None:
        """The place of a merge of two models on the line between them; None for anything else."""
        if self.method == "sum" or len(self.parents) != 2 or len(self.shares) != 2:
            return None
        return self.shares[1] / (sum(self.shares) or 1.0)


def history_of(path: str | Path) -> History | None:
    """How a model folder was made; None where it does not say. Nothing is downloaded."""
    folder = expanded(path)
    try:
        found = json.loads((folder / PROFILE).read_text(encoding="utf-8"))[HISTORY]
        made = History(**{each.name: found[each.name] for each in fields(History) if each.name in found})
        return made if _has_its_types(made) else None
    except (OSError, ValueError, LookupError, TypeError):  # a folder from elsewhere, or of an earlier version
        return None


def _has_its_types(made: History) -> bool:
    """Whether the values that a card renders are what they are called; a stranger may have written them."""
    empty = History("")
    kinds = {each.name: vars(empty)[each.name] for each in fields(History)}
    for name, value in vars(made).items():
        if isinstance(kinds[name], str | Mapping | bool | list) and not isinstance(value, type(kinds[name])):
            return False
        if (
            name in ("guidance", "step", "dial_low", "dial_high")
            and value is not None
            and type(value) not in (int, float)
        ):
            return False
    if not all(type(share) in (int, float) for share in made.shares):
        return False
    return made.dial_low is not None and made.dial_high is not None


def of_base(path: str) -> History:
    """What is known of a start model: its names and its licence."""
    if is_adapter(path):
        return of_base(base_of(path))
    before = history_of(path) or History("")
    prefix, colon, name = path.partition(":")
    packaged = PACKAGED.get(name) if colon and prefix == "text" else None
    is_local = expanded(path).exists() or source_or_none(path) is not None
    return History(
        shown(path),
        hub=packaged.hub if packaged else before.hub if is_local else path,
        licence=packaged.licence if packaged else before.licence or _licence_of(path, is_local),
        base_is_on_hub=not is_local,
        versions=versions(),
    )


def of_student(
    base: str, card: Mapping[str, Any], checkpoint: Path, step: int | None, weights: str, relative_to: str = ""
) -> History:
    """The history of an export.

    Args:
        base: the start model.
        card: what the checkpoint says of guidance, dial, losses and start.
        checkpoint: the file, in the folder of its run.
        step: optimiser steps.
        weights: ``raw`` or ``ema``.
        relative_to: the folder of the student that the export is the difference to; empty for none.
    """
    start = str(card.get("start") or "")
    return replace(
        of_base(base),
        guidance=card.get("guidance"),
        losses=card.get("losses") or {},
        start=shown(start) if start else "",
        recipe=_recipe_of(checkpoint),
        distilled=card.get("guidance") != 1,
        dialled=bool(card.get("dialled")),
        dial_low=float(card.get("dial_low", 0.0)),
        dial_high=float(card.get("dial_high", 1.0)),
        teacher_system=str(card.get("teacher_system") or ""),
        relative_to=shown(relative_to) if relative_to else "",
        step=step,
        weights=weights,
    )


def _recipe_of(checkpoint: Path) -> str:
    """The recipe of the run that wrote a checkpoint, as the user named it; empty where the run does not say."""
    try:
        named = str(json.loads((checkpoint.parent.parent / ".lock").read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return Path(named).name if Path(named).is_absolute() else named


def of_merge(
    models: Mapping[str, str | Path],
    method: str,
    shares: Sequence[float],
    base: str | None = None,
    start: str | Path | None = None,
) -> History:
    """The history of a merge.

    Args:
        models: name -> folder, in the order of the shares.
        method: of the merge.
        shares: its weights.
        base: the base of adapters; None for whole models.
        start: the folder that all models were trained from, where the method takes one; None for the base of adapters.
    """
    known = {name: history_of(path) for name, path in models.items()}
    first = next((each for each in known.values() if each is not None), None)
    if first is None:
        first = replace(of_base(base or str(next(iter(models.values())))), distilled=False)
    made = [each or History("") for each in known.values()]
    guidance = _guidance_of_merge(made, method, shares, None if start is None else history_of(start))
    low, high = max(each.dial_low for each in made), min(each.dial_high for each in made)
    parents = {name: {} if each is None else asdict(replace(each, parents={})) for name, each in known.items()}
    told = [each for each in known.values() if each is not None] or [first]
    distilled = any(each.distilled for each in told) and guidance != 1
    licence = first.licence if len({each.licence for each in told}) == 1 else ""  # of two, the user knows which counts
    return replace(
        History(first.base, first.hub, licence, first.base_is_on_hub, distilled),
        dialled=method in MEANS and all(each.dialled for each in made) and guidance is not None and low <= high,
        dial_low=low,
        dial_high=high,
        guidance=guidance,
        method=method,
        shares=list(shares),
        parents=parents,
        versions=versions(),
    )


def _guidance_of_merge(
    models: Sequence[History], method: str, shares: Sequence[float], start: History | None
) -> float | None:
    r"""The gamma of a merge; None where nothing tells it.

    A mean of models of one gamma has that gamma. An adapter with a dial whose change is multiplied by w has
    :math:`1 + w\,(\gamma - 1)`. A difference to it (``relative_to``) changes the diversity, and not gamma.

    Args:
        models: that were merged; one that says nothing of itself has no known gamma.
        method: of the merge.
        shares: its weights.
        start: the student that all models were trained from; None where that is a base.
    """
    (gamma, *others) = {each.guidance for each in models}
    if others or gamma is None:
        return None
    if method in (*MEANS, "slerp"):
        return gamma
    if start is not None:
        return gamma if method == "liti" and start.guidance == gamma else None
    scaled = [(each, share) for each, share in zip(models, shares, strict=True) if not each.relative_to]
    if len(scaled) != 1:
        return None
    ((model, share),) = scaled
    if share == 1:
        return gamma
    return 1 + share * (gamma - 1) if model.dialled and share >= 0 else None


def terms_of(licence: str) -> str:
    """What the licence of a start model means for a student of it, in sentences. No advice of a lawyer.

    Args:
        licence: as the hub spells it; empty where it is not known.

    Example:
        >>> terms_of("mit")
        'mit, that of the base. Keep the licence and the notices of the base, and say that the weights were changed.'
        >>> "no commercial use" in terms_of("cc-by-nc-4.0")
        True
    """
    if not licence:
        return "That of the base holds. It was not found beside the base: name it in README.md before you publish the model."
    named, parts = f"{licence}, that of the base.", licence.lower().split("-")
    if "nc" in parts:
        said = " It allows no commercial use: neither of this model nor of its merges and students."
        said += " Name the base, and say that the weights were changed."
    elif parts[0] in _FREE:
        said = " Keep the licence and the notices of the base, and say that the weights were changed."
    elif parts[:2] == ["cc", "by"]:
        said = " Name the base, and say that the weights were changed."
    else:
        said = " Read what it says of derived models before you publish this one."
    if "sa" in parts:
        said += " Share it under the same licence."
    return named + said


def remarks_on_guiding(models: Sequence[str], scales: Sequence[float]) -> list[Problem]:
    """A remark, under the key ``guidance``, on each student that is to be guided again. Nothing is downloaded."""
    known = {model: _distillation_of(model) for model in models} if any(scale != 1 for scale in scales) else {}
    found = []
    for model, made in known.items():
        if made is not None:
            scale = "" if made.guidance is None else f" {made.guidance:g}"
            text = f"`{model}` was distilled and already carries guidance{scale}. Guided again, it overshoots."
            found.append(Problem("guidance", f"{text} Leave this at 1 for it."))
    return found


def _distillation_of(model: str) -> History | None:
    """How a model came to carry guidance, or the base of an adapter did; None where nothing says that it does."""
    try:
        names = dict.fromkeys((model, base_of(model)))
    except ConfigError:  # an adapter that names no base: its own problem
        names = {model: None}
    for name in names:
        made = history_of(name) if expanded(name).exists() else _cached_history(name)
        if made is None and {*map(str, head_of(expanded(name) / CARD).get("tags") or ())} >= DISTILLED:
            made = History("")  # of a copy without `cfg_distill.json`
        if made is not None and made.distilled:
            return made
    return None


def _cached_history(name: str) -> History | None:
    """That of a hub name whose files are on this machine already."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        cached = try_to_load_from_cache(name, PROFILE)
    except HFValidationError:  # no hub name: `tunes:base`
        return None
    return history_of(Path(cached).parent) if isinstance(cached, str) else None


def shown(path: str | Path) -> str:
    """A model by a name that tells nothing of this machine: of a folder its last part, any other name as it is.

    Example:
        >>> shown("/home/ada/students/quality"), shown("tunes:base"), shown("facebook/musicgen-small")
        ('quality', 'tunes:base', 'facebook/musicgen-small')
    """
    is_folder = Path(path).is_absolute() or str(path).startswith((".", "~")) or Path(path).exists()
    return expanded(path).name or Path(path).resolve().name if is_folder else str(path)


def versions() -> dict[str, str]:
    """Of this package and those that the weights depend on."""
    names = ("cfg-distill", "torch", "transformers", "peft")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def source_or_none(path: str) -> Path | None:
    """The folder behind a shipped or packaged name; None without one."""
    try:
        return source(path)
    except ConfigError:
        return None


def head_of(card: Path) -> dict[str, Any]:
    """The YAML head of a model card; empty where there is none."""
    try:
        match = _HEAD.match(card.read_text(encoding="utf-8"))
        found = parse_yaml(match[1]) if match else {}
    except (OSError, ValueError, ConfigError):
        return {}
    return found if isinstance(found, dict) else {}


def _licence_of(path: str, is_local: bool) -> str:
    """The licence that the card of a start model names; that of this package for the models inside of it."""
    if path.startswith("tunes:"):
        return "apache-2.0"
    card = expanded(path) / CARD
    if not is_local:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(path, CARD)
        card = Path(cached) if isinstance(cached, str) else card
    named = head_of(card).get("license")
    return (
        str(named) if named else next((licence for start, licence in _LICENCES.items() if path.startswith(start)), "")
    )
