"""Ratings of a listening test: read and checked, then summed up as opinions of the study's systems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import expanded
from cfg_distill.report import listening
from cfg_distill.report.listening_request import KEPT, KEY

FORMAT, VERSION = "cfg-distill ratings", 1
"""The format of a rater's file; the page writes it too."""
KEY_PARTS = {
    "page": str,
    "study": str,
    "systems": list,
    "against": str,
    "prompts": list,
    "raters": int,
    "kind": str,
    "items": dict,
}
"""The parts of the key of a listening test, and what each is."""
SCALES = ("quality", "adherence")
SCORES = range(1, 6)
EQUAL = "equal"
SHOWN = 3
"""How many wrong answers of one file a message names."""


@dataclass(frozen=True)
class Key:
    """What the items of a page mean.

    Attributes:
        page: its id.
        study: the folder of the study.
        systems: that were rated.
        against: the system that the others are compared with.
        prompts: the prompts.
        raters: the number of raters that was planned.
        kind: ``sound`` or ``text``.
        items: item -> ``{"kind": "quality", "prompt": place, "system": name}`` or ``{"kind": "variety", "prompt": place,
            "groups": {group: system}}``.
    """

    page: str
    study: str
    systems: list[str]
    against: str
    prompts: list[str]
    raters: int
    kind: str
    items: dict[str, dict[str, Any]]


@dataclass
class Rater:
    """The file of one rater.

    Attributes:
        name: of the rater.
        file: it.
        page: the page that it belongs to.
        answers: item -> answer, as the page wrote it.
        saved: when.
    """

    name: str
    file: Path
    page: str
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    saved: str = ""

    @property
    def minutes(self) -> float:
        """The time that the answers took."""
        return sum(float(answer.get("seconds", 0.0)) for answer in self.answers.values()) / 60


def read_key(folder: Path, pages: Sequence[str] = ()) -> Key:
    """The key of a listening test.

    Args:
        folder: the folder of the test, or of the study.
        pages: ids of pages; of several keys in a study the one of these pages is taken.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    folder = expanded(folder)
    own, kept = folder / KEY, sorted((folder / KEPT).glob("*.json"))
    files = [own] if own.is_file() else kept
    if not files:
        text = f"Expected the folder of a listening test or of its study, but `{folder}` holds no key. Check the path,"
        raise ConfigError(f"{text} or write a test with `cfg-distill listen`.")
    if len(files) > 1:
        files = [file for file in files if file.stem in pages] or files[-1:]
    content = _read(files[0])
    if isinstance(content, str):
        raise ConfigError(content)
    if content.get("format") != listening.FORMAT or content.get("version") != listening.VERSION:
        text = (
            f"File `{files[0]}`: expected the key of a listening test, but it is none of this version of cfg-distill."
        )
        raise ConfigError(f"{text} Write the test again.")
    damaged = [f"`{name}`" for name, kind in KEY_PARTS.items() if not isinstance(content.get(name), kind)]
    if damaged:
        text = (
            f"File `{files[0]}`: expected the key of a listening test, but {', '.join(damaged)} is missing or damaged."
        )
        raise ConfigError(f"{text} Write the test again.")
    return Key(**{name: content[name] for name in KEY_PARTS})


def read_ratings(files: Sequence[Path], folder: Path) -> tuple[Key, list[Rater]]:
    """The key of a test and the files of its raters.

    Args:
        files: of raters.
        folder: of the listening test, or of the study.

    Raises:
        ConfigError: everything that is wrong: a file that is no JSON or no ratings, files of another page or of several,
            one rater twice, scores out of range.
    """
    problems: list[str] = []
    raters: list[Rater] = []
    for file in dict.fromkeys(expanded(file).resolve() for file in files):
        found = _rater(file)
        if isinstance(found, str):
            problems.append(found)
        else:
            raters.append(found)
    key = read_key(folder, [rater.page for rater in raters])
    problems += _problems_of_pages(key, raters) + _problems_of_names(raters)
    for rater in raters:
        problems += _problems_of_answers(key, rater) if rater.page == key.page else []
    if problems:
        raise ConfigError([Problem("", text) for text in problems])
    return key, sorted(raters, key=lambda rater: rater.name.casefold())


def _read(file: Path) -> dict[str, Any] | str:
    """The object in a JSON file; or why there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"File `{file.name}`: expected ratings, but it does not exist. Check the path."
    except (ValueError, OSError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        text = f"File `{file.name}`: expected JSON, but it cannot be read: {' '.join(str(error).split())}."
        return f"{text} Ask for the file again."
    return (
        content
        if isinstance(content, dict)
        else f"File `{file.name}`: expected ratings, but it holds a list or a value."
    )


def _rater(file: Path) -> Rater | str:
    """A rater's file, its answers not checked; or what is wrong with the whole."""
    content = _read(file)
    if isinstance(content, str):
        return content
    form = content.get("format")
    if form != FORMAT:
        what = f"but it is a {form}" if form in (listening.FORMAT, "cfg-distill opinions") else "but it is another file"
        return f"File `{file.name}`: expected the file of a rater, {what}. Leave it out."
    if content.get("version") != VERSION:
        text = f"expected version {VERSION} of ratings, but got {content.get('version')!r}. Rate on a page of this version."
        return f"File `{file.name}`: {text}"
    name, page, answers = content.get("rater"), content.get("page"), content.get("answers")
    lacking = (
        f"File `{file.name}`: expected a rater, a page and answers, but it lacks one of them. Ask for the file again."
    )
    if not isinstance(name, str) or not name.strip() or not isinstance(page, str) or not isinstance(answers, dict):
        return lacking
    if not all(isinstance(answer, dict) for answer in answers.values()):
        return lacking
    if not answers:
        return f"File `{file.name}`: expected ratings, but {name.strip()} has answered nothing. Leave it out."
    return Rater(name.strip(), file, page, answers, str(content.get("saved", "")))


def _problems_of_pages(key: Key, raters: Sequence[Rater]) -> list[str]:
    """Files of other pages; when the files themselves are of several, that is said once."""
    pages: dict[str, list[str]] = {}
    for rater in raters:
        pages.setdefault(rater.page, []).append(f"`{rater.file.name}`")
    if len(pages) > 1:
        listed = "; ".join(f"{page}: {', '.join(names)}" for page, names in sorted(pages.items()))
        return [
            f"Expected ratings of one page, but got a mix ({listed}). The key is of page {key.page}. Give its files alone."
        ]
    text = f"expected ratings of page {key.page}, to which the key belongs, but it is of page"
    return [
        f"File `{rater.file.name}`: {text} {rater.page}. Give the folder of that test, or leave the file out."
        for rater in raters
        if rater.page != key.page
    ]


def _problems_of_names(raters: Sequence[Rater]) -> list[str]:
    """One rater twice: a copy, an earlier state, or two people of one name."""
    by_name: dict[str, list[str]] = {}
    for rater in raters:
        by_name.setdefault(" ".join(rater.name.casefold().split()), []).append(f"`{rater.file.name}`")
    return [
        f"Expected one file per rater, but {' and '.join(names)} are all by {name}. Keep the last one. If these are several"
        " people, change the name in their files."
        for name, names in by_name.items()
        if len(names) > 1
    ]


def _problems_of_answers(key: Key, rater: Rater) -> list[str]:
    """Answers to no item, or out of range."""
    wrong = [text for item, answer in rater.answers.items() if (text := _wrong(key.items.get(item), item, answer))]
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    listed = "; ".join(wrong[:SHOWN])
    return [f"File `{rater.file.name}`: {listed}{more}. Ask for the file again."] if wrong else []


def _wrong(meaning: Mapping[str, Any] | None, item: str, answer: Mapping[str, Any]) -> str:
    """What is wrong with one answer; empty when nothing is."""
    if meaning is None:
        return f"expected items of the page, but got `{item}`"
    seconds = answer.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
        return f"item `{item}`: expected seconds of at least 0, but got {seconds!r}"
    if meaning["kind"] == "variety":
        known = [*meaning["groups"], EQUAL]
        more = answer.get("more")
        return "" if more in known else f"item `{item}`: expected a group of the page or `equal`, but got {more!r}"
    for scale in SCALES:
        score = answer.get(scale)
        if isinstance(score, bool) or score not in SCORES:
            return f"item `{item}`: expected a {scale} from 1 to 5, but got {score!r}"
    return ""
