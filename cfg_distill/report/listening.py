"""The blind listening test: a folder with one page for raters, and a key that stays with the person who asks them.

Two kinds of items: the quality of one sample and how well it fits its prompt, each from 1 to 5; and which of two groups of
samples of one prompt is more varied. Neither page nor file names tell which system made a sample.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfg_distill.data import read_prompts
from cfg_distill.errors import ConfigError
from cfg_distill.files import staged_folder, write_text
from cfg_distill.prompt import Prompt, PromptLike
from cfg_distill.report.clips import common_gain, drawn_clips, encoded, written_clips
from cfg_distill.report.listening_request import KEPT, KEY, ListeningTest, ListenRequest, evenly, ready
from cfg_distill.study.record import digest

TEMPLATES = Path(__file__).parent / "templates"
FORMAT, VERSION = "cfg-distill listening key", 1
SECONDS_PER_ANSWER = 10.0
"""What a rater needs for an item beside hearing it: a guess, as in the page."""
WORDS_PER_SECOND = 4.0
"""The speed of reading."""
DATE = 946_684_800
"""The date of all files of a page: the first day of 2000, which zip archives can hold."""
LONG = 60
"""Minutes after which raters tire."""


def make_test(request: ListenRequest) -> str:
    """Write the page and its key; return what to do with them.

    Raises:
        ConfigError: everything that is wrong with the request and the study, before a model is loaded.
    """
    test, problems = ready(request)
    if problems:
        raise ConfigError(problems)
    with tempfile.TemporaryDirectory(prefix="cfg-distill-") as drawn:
        source = _collect(test, request, Path(drawn))
        with staged_folder(request.out) as folder:
            key = _write(test, folder, source)
    kept = test.finished.folder / KEPT / f"{key['page']}.json"
    write_text(kept, json.dumps(key, indent=1) + "\n")
    return _told(request, test, key)


# Clips


def _collect(test: ListeningTest, request: ListenRequest, folder: Path) -> str:
    """Find or draw the clips; narrow the prompts to those of the page. Returns where the clips are from."""
    size, study = request.protocol, test.finished.study
    if request.prompt_file is None:
        first = test.texts[: size.prompts]
        clips = written_clips(test.finished, test.systems, first, test.needed)
        if clips is not None:
            test.prompts, test.clips = list(first), clips
            return "written by the study"
        test.prompts = _with_conditions(test.prompts, study.evaluation.sampled, study.evaluation.field)
    test.prompts = [test.prompts[place] for place in evenly(len(test.prompts), size.prompts)]
    problems = [problem for name in test.systems for problem in test.finished.problems_of_model(name)]
    if problems:
        raise ConfigError(problems)
    test.clips = drawn_clips(test.finished, test.systems, test.prompts, test.needed, test.seed, folder)
    return f"drawn under seed {test.seed}"


def _with_conditions(prompts: Sequence[PromptLike], file: str, column: str) -> list[PromptLike]:
    """The prompts with what else they condition on, which stands in their file alone; as they are where it is gone."""
    try:
        found = read_prompts(file, column)
    except ConfigError:
        return list(prompts)
    return found if [Prompt.of(prompt).text for prompt in found] == prompts else list(prompts)


# The page and the key


def _write(test: ListeningTest, folder: Path, source: str) -> dict[str, Any]:
    """Write page, clips and key into a folder; return the key."""
    salt = _salt(test)
    names = {place: _hash(salt, "clip", *place) for place in test.clips if test.plays(*place)}
    clips = _write_clips(test, names, folder / "page")
    items, meanings = _items(test, names, salt)
    kind = "sound" if any(clip.file for clip in test.clips.values()) else "text"
    content = [items, clips, salt, digest(folder.glob("page/clips"))]
    page = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    title = "Listening test" if kind == "sound" else "Reading test"
    data = {"page": page, "kind": kind, "title": title, "items": items, "clips": clips}
    (folder / "page" / "index.html").write_text(_page(data), encoding="utf-8")
    key = {
        "format": FORMAT,
        "version": VERSION,
        "page": page,
        "study": str(test.finished.folder.resolve()),
        "seed": test.seed,
        "raters": test.raters,
        "kind": kind,
        "source": source,
        "systems": test.systems,
        "against": test.against,
        "prompts": test.texts,
        "minutes": round(_seconds(items, clips) / 60, 1),
        "items": meanings,
    }
    (folder / KEY).write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    for file in [*folder.rglob("*"), folder]:
        os.utime(file, (DATE, DATE))  # the order in which clips were written would tell their systems
    return key


def _salt(test: ListeningTest) -> str:
    """What makes the names of clips: fixed for a study and a seed, and unknown to who has the page alone."""
    record = (test.finished.folder / "study.json").read_bytes()
    values = [test.finished.systems[name].values for name in test.systems]
    return hashlib.sha256(record + json.dumps([values, test.seed]).encode()).hexdigest()


def _hash(salt: str, *parts: object) -> str:
    return hashlib.sha256("\0".join([salt, *map(str, parts)]).encode()).hexdigest()[:16]


def _write_clips(test: ListeningTest, names: Mapping[tuple[str, int, int], str], page: Path) -> dict[str, Any]:
    """Write the sound files; return name -> seconds, and file or text, in the order of the names, which tells nothing."""
    files = page / "clips"
    sounds = [clip.file for place in names if (clip := test.clips[place]).file]
    (files if sounds else page).mkdir(parents=True)
    gain = common_gain(sounds)
    clips: dict[str, Any] = {}
    for place, name in names.items():
        clip = test.clips[place]
        if clip.file is None:
            clips[name] = {"text": clip.text, "seconds": round(len(clip.text.split()) / WORDS_PER_SECOND, 1)}
            continue
        content, suffix, seconds = encoded(clip.file, gain)
        (files / f"{name}{suffix}").write_bytes(content)
        clips[name] = {"file": f"clips/{name}{suffix}", "seconds": round(seconds, 3)}
    return {name: clips[name] for name in sorted(clips)}


def _items(
    test: ListeningTest, names: Mapping[tuple[str, int, int], str], salt: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items of the page in an order that tells nothing, and what each of them means."""
    items: list[dict[str, Any]] = []
    meanings: dict[str, Any] = {}
    for place, prompt in enumerate(test.texts):
        for system in test.systems:
            item = _hash(salt, "quality", system, place)
            items.append({"id": item, "kind": "quality", "prompt": prompt, "clips": [names[system, place, 0]]})
            meanings[item] = {"kind": "quality", "prompt": place, "system": system}
    for place in test.compared:
        for system in [name for name in test.systems if name != test.against]:
            item = _hash(salt, "variety", system, place)
            sides = {_hash(salt, "group", item, side): side for side in (system, test.against)}
            groups = [
                {"id": group, "clips": [names[sides[group], place, number] for number in range(test.group)]}
                for group in sorted(sides)
            ]
            items.append({"id": item, "kind": "variety", "prompt": test.texts[place], "groups": groups})
            meanings[item] = {"kind": "variety", "prompt": place, "groups": sides}
    return sorted(items, key=lambda item: item["id"]), {item: meanings[item] for item in sorted(meanings)}


def _page(data: Mapping[str, Any]) -> str:
    """The page: template, style and scripts in one file."""
    parts = {
        "title": data["title"],
        "style": (TEMPLATES / "listening.css").read_text(encoding="utf-8"),
        "script": "\n".join(
            (TEMPLATES / f"listening_{part}.js").read_text(encoding="utf-8") for part in ("answers", "items", "screens")
        ),
        # Last, so that nothing in a prompt is taken for a part; and no `<`, which could end the element.
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    }
    page = (TEMPLATES / "listening.html").read_text(encoding="utf-8")
    for name, content in parts.items():
        page = page.replace(f"{{{{ {name} }}}}", content)
    return page


def _seconds(items: Sequence[Mapping[str, Any]], clips: Mapping[str, Any]) -> float:
    """How long one rater needs, about."""
    heard = [
        clip for item in items for group in item.get("groups", [item]) for clip in group["clips"]
    ]  # an item of quality is a group of its own
    return sum(clips[clip]["seconds"] for clip in heard) + SECONDS_PER_ANSWER * len(items)


def _told(request: ListenRequest, test: ListeningTest, key: Mapping[str, Any]) -> str:
    """What was written, and what to do with it."""
    kinds = [meaning["kind"] for meaning in key["items"].values()]
    page = request.out / "page"
    size = sum(file.stat().st_size for file in page.rglob("*") if file.is_file())
    noun = "clips" if key["kind"] == "sound" else "texts"
    minutes = max(1, round(key["minutes"]))
    long = " Fewer `--systems`, `--prompts` or `--variety` make it shorter." if minutes > LONG else ""
    compared = f", {kinds.count('variety')} comparisons with `{test.against}`" if "variety" in kinds else ""
    return (
        f"Wrote {request.out}: {kinds.count('quality')} {noun} of {len(test.systems)} systems on {len(test.texts)} prompts"
        f"{compared}; {key['source']}; {size / 1e6:.1f} MB, about {minutes} minutes per rater.{long}\n"
        f"1. Give {test.raters} raters a copy of the folder {page}. They open index.html, and send a JSON file back.\n"
        f"2. Keep {request.out / KEY} to yourself: it says which system made each clip.\n"
        f"3. cfg-distill ratings ratings-*.json --listen {request.out}"
    )
