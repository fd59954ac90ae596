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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cfg_distill.data import read_prompts
from cfg_distill.errors import ConfigError, Problem, nearest
from cfg_distill.files import problems_of_out, staged_folder, write_text
from cfg_distill.prompt import Prompt, PromptLike
from cfg_distill.report.clips import Clips, Finished, common_gain, drawn_clips, encoded, read_finished, written_clips
from cfg_distill.study.record import digest

TEMPLATES = Path(__file__).parent / "templates"
KEY, KEPT = "key.json", "listening"
"""The key in the folder of a listening test, and the folder of a study that keeps a copy of each key."""
FORMAT, VERSION = "cfg-distill listening key", 1
OURS = (KEY, "ratings.json", "ratings.txt", "page/index.html", "page/clips/*.flac", "page/clips/*.wav")
"""The files of a listening test, which may be replaced."""
SECONDS_PER_ANSWER = 10.0
"""What a rater needs for an item beside hearing it: a guess, as in the page."""
WORDS_PER_SECOND = 4.0
"""The speed of reading."""
DATE = 946_684_800
"""The date of all files of a page: the first day of 2000, which zip archives can hold."""
LONG = 60
"""Minutes after which raters tire."""
MOST_SYSTEMS = 8
"""More systems than this are a wrong default: a rater hears one clip of each for every prompt."""


class Protocol(NamedTuple):
    """The size of a test.

    Attributes:
        prompts: prompts of which every system is rated.
        raters: raters, who answer every item each.
        variety: prompts of which the variety of two systems is compared.
    """

    prompts: int
    raters: int
    variety: int


PRESETS = {"short": Protocol(12, 3, 6), "paper": Protocol(101, 3, 50)}
"""``paper``: 101 prompts by 3 raters for quality and 50 prompts for variety (arXiv 2410.06084). ``short`` is ours."""


@dataclass(frozen=True)
class ListenRequest:
    """A listening test of a study.

    Args:
        study: the folder of the study, or its file.
        out: the folder to write.
        preset: the size of the test where the next three are None.
        prompts: prompts of which every system is rated.
        raters: number of raters; it is noted in the key.
        variety: prompts of which variety is compared; 0 for no such question.
        systems: systems of the study; empty takes those of its claims.
        against: the system that all others are compared with; None takes the guided one of the claims.
        group: samples of each group whose variety is compared.
        prompt_file: prompts of another file, of which samples are drawn; None takes the study's.
        seed: of the order and of samples that are drawn.
        overwrite: replace a listening test in ``out``.
    """

    study: Path
    out: Path
    preset: str = "short"
    prompts: int | None = None
    raters: int | None = None
    variety: int | None = None
    systems: Sequence[str] = ()
    against: str | None = None
    group: int = 2
    prompt_file: Path | None = None
    seed: int = 0
    overwrite: bool = False

    @property
    def protocol(self) -> Protocol:
        """The preset, with what was given in its place."""
        preset = PRESETS[self.preset]
        given = (self.prompts, self.raters, self.variety)
        sizes = [theirs if own is None else own for own, theirs in zip(given, preset, strict=True)]
        if self.variety is None:  # no more than there are prompts
            sizes[2] = min(sizes[2], max(sizes[0], 0))
        return Protocol(*sizes)


@dataclass
class _Test:
    """A request made ready.

    Attributes:
        finished: the study.
        systems: their names.
        against: one of them.
        prompts: that are rated.
        compared: places of the prompts whose variety is compared.
        group: samples per group.
        seed: of the order and of sampling.
        raters: number of raters.
    """

    finished: Finished
    systems: list[str]
    against: str
    prompts: list[PromptLike]
    compared: list[int]
    group: int
    seed: int
    raters: int
    clips: Clips = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Samples per prompt that the page takes."""
        return self.group if self.compared and len(self.systems) > 1 else 1

    def plays(self, system: str, prompt: int, number: int) -> bool:
        """Whether the page has a place for a clip."""
        return number == 0 or (prompt in self.compared and number < self.needed)

    @property
    def texts(self) -> list[str]:
        return [Prompt.of(prompt).text for prompt in self.prompts]


def make_test(request: ListenRequest) -> str:
    """Write the page and its key; return what to do with them.

    Raises:
        ConfigError: everything that is wrong with the request and the study, before a model is loaded.
    """
    test, problems = _ready(request)
    if problems:
        raise ConfigError(problems)
    with tempfile.TemporaryDirectory(prefix="cfg-distill-") as drawn:
        source = _collect(test, request, Path(drawn))
        with staged_folder(request.out) as folder:
            key = _write(test, folder, source)
    kept = test.finished.folder / KEPT / f"{key['page']}.json"
    write_text(kept, json.dumps(key, indent=1) + "\n")
    return _told(request, test, key)


def evenly(total: int, chosen: int) -> list[int]:
    """Places of ``chosen`` of ``total`` things, spread evenly: the prompts of a file are often sorted.

    Example:
        >>> evenly(10, 4)
        [0, 2, 5, 7]
    """
    return [place * total // chosen for place in range(chosen)]


# What is wrong, before anything is drawn


def _ready(request: ListenRequest) -> tuple[_Test, list[Problem]]:
    finished = read_finished(request.study)
    problems = _problems_of_numbers(request)
    systems, found = _systems(request, finished)
    problems += found
    against, found = _against(request, finished, systems)
    problems += found
    prompts: list[PromptLike] = list(next(iter(finished.systems.values())).prompts)
    if request.prompt_file is not None:
        try:
            prompts = read_prompts(request.prompt_file)
        except ConfigError as error:
            problems += [Problem("prompt_file", str(problem)) for problem in error.problems]
    size = request.protocol
    if size.prompts > len(prompts):
        where = f"`{request.prompt_file}`" if request.prompt_file else "the study"
        asked = "prompts" if request.prompts is not None else "preset"
        text = f"expected at most {len(prompts)} prompts, since {where} has no more, but got {size.prompts}. Give"
        problems.append(Problem(asked, f"{text} `@.prompts`, or a longer file as `@.prompt_file`."))
    if size.variety > max(size.prompts, 0):
        text = f"expected at most {size.prompts}, the number of prompts, but got {size.variety}."
        problems.append(Problem("variety", text))
    inputs = [str(finished.folder), *([str(request.prompt_file)] if request.prompt_file else [])]
    # A folder inside the study's is a good place, as long as the study itself writes nothing there.
    inside = request.out.expanduser().resolve().is_relative_to(finished.folder.resolve() / KEPT)
    problems += problems_of_out(request.out, inputs[1:] if inside else inputs, request.overwrite, OURS)
    test = _Test(
        finished,
        systems,
        against,
        prompts,
        evenly(max(size.prompts, 1), max(size.variety, 0)),
        request.group,
        request.seed,
        size.raters,
    )
    return test, problems


def _problems_of_numbers(request: ListenRequest) -> list[Problem]:
    size = request.protocol
    least = {"prompts": (size.prompts, 1), "raters": (size.raters, 1), "variety": (size.variety, 0)}
    least["group"] = (request.group, 2)
    return [
        Problem(key, f"expected at least {smallest}, but got {value}.")
        for key, (value, smallest) in least.items()
        if value < smallest
    ]


def _systems(request: ListenRequest, finished: Finished) -> tuple[list[str], list[Problem]]:
    """The systems that are rated."""
    if request.systems:
        known, named = list(finished.systems), list(dict.fromkeys(request.systems))
        wrong = [name for name in named if name not in known]
        text = f"expected systems of the study, {known}, but got"
        return (
            [name for name in named if name in known],
            [Problem("systems", f"{text} `{name}`.{nearest(name, known)}") for name in wrong],
        )
    claimed = [] if finished.study.claims is None else list(vars(finished.study.claims).values())
    named = [name for name in dict.fromkeys(filter(_is_text, claimed)) if name in finished.systems]
    systems = named or list(finished.systems)
    if len(systems) <= MOST_SYSTEMS:
        return systems, []
    text = f"expected the systems to rate, since the study has {len(systems)} and no claims. Name some of {systems}."
    return systems, [Problem("systems", text)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _against(request: ListenRequest, finished: Finished, systems: Sequence[str]) -> tuple[str, list[Problem]]:
    """The system that all others are compared with."""
    if request.against is not None:
        if request.against in systems:
            return request.against, []
        text = f"expected one of the rated systems, {list(systems)}, but got `{request.against}`."
        return "", [Problem("against", f"{text}{nearest(request.against, systems)}")]
    claimed = None if finished.study.claims is None else finished.study.claims.guidance
    if claimed in systems:
        return str(claimed), []
    guided = [name for name in systems if finished.systems[name].kind == "guidance"]
    return next(iter([*guided, *systems]), ""), []


# Clips


def _collect(test: _Test, request: ListenRequest, folder: Path) -> str:
    """Find or draw the clips; narrow the prompts to those of the page. Returns where the clips are from."""
    size, study = request.protocol, test.finished.study
    if request.prompt_file is None:
        first = test.texts[: size.prompts]
        clips = written_clips(test.finished, test.systems, first, test.needed)
        if clips is not None:
            test.prompts, test.clips = list(first), clips
            return "written by the study"
        test.prompts = _with_conditions(test.prompts, study.evaluation.prompts, study.evaluation.field)
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


def _write(test: _Test, folder: Path, source: str) -> dict[str, Any]:
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


def _salt(test: _Test) -> str:
    """What makes the names of clips: fixed for a study and a seed, and unknown to who has the page alone."""
    record = (test.finished.folder / "study.json").read_bytes()
    values = [test.finished.systems[name].values for name in test.systems]
    return hashlib.sha256(record + json.dumps([values, test.seed]).encode()).hexdigest()


def _hash(salt: str, *parts: object) -> str:
    return hashlib.sha256("\0".join([salt, *map(str, parts)]).encode()).hexdigest()[:16]


def _write_clips(test: _Test, names: Mapping[tuple[str, int, int], str], page: Path) -> dict[str, Any]:
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
    test: _Test, names: Mapping[tuple[str, int, int], str], salt: str
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


def _told(request: ListenRequest, test: _Test, key: Mapping[str, Any]) -> str:
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
