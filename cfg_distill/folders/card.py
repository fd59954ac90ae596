"""The model card of an export or a merge: README.md with a head that the hub reads."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from cfg_distill.errors import ConfigError
from cfg_distill.files import CARD_KEY, expanded, read_json, strangers, write_json
from cfg_distill.folders.history import CARD, DISTILLED, History, history_of, source_or_none, terms_of
from cfg_distill.folders.names import ADAPTER_CONFIG, base_of, is_adapter
from cfg_distill.folders.profile import HISTORY, PROFILE

PIPELINES = {
    "csm": "text-to-speech",
    "dia": "text-to-speech",
    "musicgen": "text-to-audio",
    "musicgen_melody": "text-to-audio",
}
"""``model_type`` -> the hub's name of the task. Causal language models are found by their class."""
_DERIVED = "A student is made of the weights of its base, and distilling them lifts no condition of their licence."
NOTICES = ("LICENSE*", "NOTICE*")
ONLY_MERGED = (
    "its base is on this machine only, so that others cannot load the adapter. Export it with --merged to publish it"
)


def write_card(folder: Path, name: str, history: History) -> None:
    """Write README.md, and the history into ``cfg_distill.json``, where its other keys stay.

    Args:
        folder: with the model's other files.
        name: of the model, for the title.
        history: how it was made.
    """
    text = card_of(folder, name, history)
    (folder / CARD).write_text(text, encoding="utf-8")
    profile = folder / PROFILE
    content = read_json(profile) if profile.is_file() else {}
    content[HISTORY] = asdict(history) | {CARD_KEY: hashlib.sha256(text.encode()).hexdigest()}
    write_json(profile, content)


MEASURED = {"quality": "quality", "diversity": "diversity", "guards": "guard"}
"""Key in front.json -> axis of its metrics."""
_CONDITIONS = ("prompts", "samples", "temperature")


def tell_measured(folder: Path, name: str, point: Mapping[str, Any], against: Mapping[str, Any] | None = None) -> None:
    """Write the card anew, with a point of a study's front. A folder whose making is not known, and an edited card, stay.

    Args:
        folder: an export or a merge.
        name: of the model.
        point: an entry of ``systems`` in front.json.
        against: the entry of the guided base; None without one.
    """
    history = history_of(folder)
    if history is None or ((folder / CARD).exists() and CARD in strangers(folder)):
        return
    measured: dict[str, Any] = {key: point.get(key) or {} for key in MEASURED}
    measured |= {key: point[key] for key in _CONDITIONS if point.get(key) is not None}
    if against is not None:
        measured["against"] = {"name": against["name"]} | {key: against.get(key) or {} for key in MEASURED}
    write_card(folder, name, replace(history, measured=measured))


def copy_notices(base: str, folder: Path) -> None:
    """Copy the licence and the notices of a start model, where its folder holds some."""
    found = source_or_none(base) or expanded(base)
    for pattern in NOTICES:
        for file in found.glob(pattern) if found.is_dir() else ():
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)


def card_of(folder: Path, name: str, history: History) -> str:
    """The text of a model card."""
    head = yaml.safe_dump(_head(folder, history), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---", f"# {name}", _about(folder, history)]
    if history.distilled:
        parts.append(
            "**Do not guide this model.** It already carries the guidance: guided again, it overshoots. Leave every guidance"
            " scale at 1."
        )
    parts += ["## How it was made", _table(_rows(history))]
    parts += [text for key, one in history.parents.items() if (text := _parent(key, one))]
    if history.measured:
        parts += ["## Measured", _measured(history.measured)]
    parts += ["## How to load it", _loading(folder, history), "## Licence", f"{_DERIVED} {terms_of(history.licence)}"]
    return "\n\n".join(parts) + "\n"


def _head(folder: Path, history: History) -> dict[str, Any]:
    adapter = is_adapter(folder)
    relation = "merge" if history.method else "adapter" if adapter else "finetune"
    pipeline = _pipeline(folder)
    return {
        **({"license": history.licence} if history.licence else {}),
        **({"base_model": history.hub, "base_model_relation": relation} if history.hub else {}),
        "library_name": "peft" if adapter else "transformers",
        **({"pipeline_tag": pipeline} if pipeline else {}),
        "tags": [
            "cfg-distill",
            *(sorted(DISTILLED - {"cfg-distill"}) if history.distilled else []),
            *(["lora"] if adapter else []),
            *(["merge"] if history.method else []),
        ],
    }


def _pipeline(folder: Path) -> str:
    if is_adapter(folder) and read_json(folder / ADAPTER_CONFIG).get("task_type") == "CAUSAL_LM":
        return "text-generation"
    try:
        base = base_of(folder)
        config = read_json((source_or_none(base) or expanded(base)) / "config.json")
    except ConfigError:  # a base on the hub
        return ""
    causal = any(str(each).endswith("ForCausalLM") for each in config.get("architectures") or ())
    return PIPELINES.get(str(config.get("model_type")), "text-generation" if causal else "")


def _about(folder: Path, history: History) -> str:
    kind = "A LoRA adapter" if is_adapter(folder) else "A model"
    if not history.distilled and history.method:
        return f"{kind} merged by cfg-distill."
    kind, base = f"{kind} distilled by cfg-distill", history.base
    if history.relative_to:
        other = f"`{history.relative_to}`"
        return (
            f"{kind}: the difference between a student and {other}. Use both on one base. With this one at scale 0 the model is"
            f" {other}, at scale 1 it is the student, and between 0 and 1 a merge of the two."
        )
    context = ", with a system message that this model was not shown" if history.teacher_system else ""
    if not history.distilled:
        return f"{kind}, trained to sample as {base} does{context}. It carries no guidance."
    if history.dialled and is_adapter(folder):
        return (
            f"{kind}, with a dial: its scale is the scale of guidance. At scale s, from {history.dial_low:g} to"
            f" {history.dial_high:g}, the model samples, with one forward pass per token, as {base} does under classifier-free"
            f" guidance of scale {_gamma_of_dial(history)}"
            f"{context}."
        )
    scale = "" if history.guidance is None else f" of scale {history.guidance:g}"
    return (
        f"{kind}, trained to sample, with one forward pass per token, as {base} does under classifier-free guidance{scale}"
        f"{context}. {'It is a merge of the students below.' if history.method else 'No guidance is needed at inference.'}"
    )


def _gamma_of_dial(history: History) -> str:
    return "1 + s (gamma - 1)" if history.guidance is None else f"1 + {history.guidance - 1:g} s"


def _rows(history: History) -> list[tuple[str, str]]:
    rows = [("base", history.base + (f" ({history.hub})" if history.hub not in ("", history.base) else ""))]
    if history.distilled and history.guidance is not None:
        dial = ", which is the adapter's at scale 1 (gamma_max of its dial)" if history.dialled else ""
        rows.append(("guidance of the teacher (gamma)", f"{history.guidance:g}{dial}"))
    if history.teacher_system:
        rows.append(("system message of the teacher", history.teacher_system))
    if history.losses:
        rows.append(("losses", _losses(history.losses)))
    if history.method:
        shares = ", ".join(f"{share:g}" for share in history.shares)
        rows += [("merge", f"{history.method}" + (f", weights {shares}" if shares else ""))]
        rows += [("models", ", ".join(history.parents))]
    if history.knob is not None:
        first, second = history.parents
        rows.append(("knob", f"{history.knob:g} (0 is {first}, 1 is {second})"))
    if history.relative_to:
        rows.append(("less", history.relative_to))
    if history.start:
        rows.append(("began from", history.start))
    if history.recipe:
        rows.append(("recipe", history.recipe))
    if history.step is not None:
        weights = {"ema": ", averages of StudentEMA", "raw": ", live weights"}.get(history.weights, "")
        rows.append(("steps", f"{history.step}{weights}"))
    return [*rows, ("versions", ", ".join(f"{name} {version}" for name, version in history.versions.items()))]


def _losses(losses: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [
        f"{name}: {one.get('class', '?')}, weight {one.get('weight', float('nan')):g}"
        + (" (beta)" if one.get("class") == "PolicyGradient" else "")
        for name, one in losses.items()
    ]
    return "; ".join(shown)


def _parent(name: str, parent: Mapping[str, Any]) -> str:
    known = History(**{"base": "", **parent})
    facts = [f"gamma {known.guidance:g}"] if known.guidance is not None else []
    facts += [_losses(known.losses)] if known.losses else []
    facts += [known.recipe] if known.recipe else []
    facts += [f"{known.step} steps"] if known.step is not None else []
    return f"`{name}`: {'; '.join(facts)}." if facts else ""


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _measured(measured: Mapping[str, Any]) -> str:
    """The point of a front as a table, beside the guided base where it is known."""
    against = measured.get("against") or {}
    rows = [["axis", "metric", "mean", "95 % interval", *([against["name"]] if against else [])]]
    rows.append(["---"] * len(rows[0]))
    for key, axis in MEASURED.items():
        for metric, value in (measured.get(key) or {}).items():
            other = (against.get(key) or {}).get(metric)
            beside = ["-" if other is None else f"{other['mean']:.3f} ({_range(other)})"] if against else []
            rows.append([axis, metric, f"{value['mean']:.3f}", _range(value), *beside])
    table = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
    if not all(key in measured for key in _CONDITIONS):  # of version 0.1
        return table
    prompts, samples, temperature = (measured[key] for key in _CONDITIONS)
    return f"On {prompts} held-out prompts, {samples} samples of each per seed, temperature {temperature:g}.\n\n{table}"


def _range(value: Mapping[str, float]) -> str:
    return f"{value['low']:.3f} to {value['high']:.3f}"


def _guidance_scale(folder: Path) -> float | None:
    """By which transformers' ``generate`` guides a model folder; None for no guidance."""
    file = folder / "generation_config.json"
    return read_json(file).get("guidance_scale") if file.is_file() else None


def _loading(folder: Path, history: History) -> str:
    if not is_adapter(folder):
        text = "With transformers 5 or newer, like its base; cfg-distill is not needed."
        scale = _guidance_scale(folder)
        if scale in (None, 1):
            return f"{text} `generation_config.json` switches guidance off."
        return f"{text} `generation_config.json` guides it by {scale:g}."
    where = f"`{history.base}`" if history.base_is_on_hub else f"`{history.base}`, which is not on a hub"
    text = (
        f"With peft, on its base {where}. peft samples by the settings of the base, which may switch guidance on: pass"
        " `generation_config=GenerationConfig.from_pretrained(...)` of this folder, where guidance and filters are off."
    )
    return text if history.base_is_on_hub else f"{text}\n\nTo be published: {ONLY_MERGED}."
