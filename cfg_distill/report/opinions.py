"""Opinions: what the ratings of a listening test say about the systems, as numbers, as a table and in front.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.evaluation.intervals import Interval, plainly
from cfg_distill.files import expanded, problems_of_place, write_text
from cfg_distill.files.columns import aligned
from cfg_distill.report.listening_request import KEY
from cfg_distill.report.rating_statistics import (
    FEWEST_PROMPTS,
    More,
    crossed_interval,
    krippendorff_alpha,
    more_to_decide,
    spread,
    win_interval,
)
from cfg_distill.report.ratings import EQUAL, SCALES, SCORES, Key, Rater, read_ratings
from cfg_distill.report.results import changing_front

FORMAT, VERSION = "cfg-distill opinions", 1
FILES = ("ratings.json", "ratings.txt")
HASTY = 2.0
"""Seconds: who answers faster has not heard a clip."""
BOUNDS = (float(SCORES[0]), float(SCORES[-1]))


def summarise(
    files: Sequence[Path], folder: Path, out: Path | None = None, add_to_front: bool = False
) -> tuple[str, list[Path]]:
    """Read ratings, write ratings.json and ratings.txt, and return the table and the files that were written.

    Args:
        files: of raters.
        folder: of the listening test, or of its study.
        out: the folder for the two files; None takes ``folder``.
        add_to_front: also add the opinions to front.json of the study.

    Raises:
        ConfigError: everything that is wrong with the files; a file of the user's would be replaced; no front.json.
    """
    folder = expanded(folder)
    key, raters = read_ratings(files, folder)
    out = folder if out is None else expanded(out)
    front = (expanded(key.study) if (folder / KEY).is_file() else folder) / "front.json"
    problems = _problems_of_out(out)
    if add_to_front and not front.is_file():
        text = f"expected the front of the study, but `{front}` does not exist. Give `--study` with the study's folder."
        problems.append(Problem("add_to_front", text))
    if problems:
        raise ConfigError(problems)
    opinions = opinions_of(key, raters)
    table = opinion_table(opinions)
    written = [out / name for name in FILES]
    for file, text in zip(written, (json.dumps(opinions, indent=1, allow_nan=False), table), strict=True):
        write_text(file, text + "\n")
    if add_to_front:
        add_opinions_to_front(front, opinions)
        written.append(front)
    return table, written


def _problems_of_out(out: Path) -> list[Problem]:
    """Why the results cannot be written: a place that takes no files, or a file of the same name that is not ours."""
    if out.exists() and not out.is_dir():
        return [Problem("out", f"expected a folder, but `{out}` is a file. Name another one.")]
    if problems := problems_of_place(out):
        return problems
    numbers, table = (out / name for name in FILES)
    try:
        ours = numbers.is_file() and json.loads(numbers.read_text(encoding="utf-8")).get("format") == FORMAT
    except (ValueError, AttributeError):
        ours = False
    return [
        Problem("out", f"`{file}` exists, and this command did not write it. Name another folder.")
        for file in (numbers, table)
        if file.exists() and not ours
    ]


# Numbers


@dataclass(frozen=True)
class _Answers:
    """The answers as arrays, NaN where there is none. P prompts of the page, R raters.

    Attributes:
        scores: (scale, system) -> ``[P, R]``.
        wins: system -> ``[P, R]``: 1 where it is more varied than the system of comparison, 1/2 for equal.
        first: share of A among the answers that were not equal; NaN where there are none.
    """

    scores: dict[tuple[str, str], np.ndarray]
    wins: dict[str, np.ndarray]
    first: float


def _answers(key: Key, raters: Sequence[Rater]) -> _Answers:
    shape = (len(key.prompts), len(raters))
    scores = {(scale, system): np.full(shape, np.nan) for scale in SCALES for system in key.systems}
    wins = {system: np.full(shape, np.nan) for system in key.systems if system != key.against}
    sides: list[bool] = []
    for number, rater in enumerate(raters):
        for item, answer in rater.answers.items():
            meaning = key.items[item]
            cell = meaning["prompt"], number
            if meaning["kind"] == "quality":
                for scale in SCALES:
                    scores[scale, meaning["system"]][cell] = answer[scale]
                continue
            (system,) = set(meaning["groups"].values()) - {key.against}
            more = answer["more"]
            wins[system][cell] = 0.5 if more == EQUAL else float(meaning["groups"][more] == system)
            if more != EQUAL and isinstance(answer.get("shown"), list):
                sides.append(answer["shown"][:1] == [more])
    return _Answers(scores, wins, float(np.mean(sides)) if sides else math.nan)


def opinions_of(key: Key, raters: Sequence[Rater]) -> dict[str, Any]:
    """The content of ratings.json."""
    answers = _answers(key, raters)
    others = [system for system in key.systems if system != key.against]
    systems: dict[str, Any] = {}
    for system in key.systems:
        systems[system] = {
            scale: _plain(crossed_interval(scores, bounds=BOUNDS))
            for scale in SCALES
            if np.isfinite(scores := answers.scores[scale, system]).any()
        }
    differences: dict[str, Any] = {system: {} for system in others}
    for system in others:
        for scale in SCALES:
            paired = answers.scores[scale, system] - answers.scores[scale, key.against]
            if np.isfinite(paired).any():
                differences[system][scale] = _comparison(paired, 0.0, crossed_interval, ("better", "worse"), answers=2)
        if np.isfinite(won := answers.wins[system]).any():
            compared = _comparison(won, 0.5, win_interval, ("more varied", "less varied"))
            counts = {"won": won == 1, "equal": won == 0.5, "lost": won == 0}
            differences[system]["variety"] = compared | {name: int(which.sum()) for name, which in counts.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "page": key.page,
        "against": key.against,
        "planned_raters": key.raters,
        "raters": [_rater(key, rater) for rater in raters],
        "systems": systems,
        "differences": differences,
        "agreement": _agreement(key, answers, others),
        "share_of_A": None if math.isnan(answers.first) else round(answers.first, 3),
        "remarks": _remarks(key, raters, answers),
    }


def _comparison(
    values_PR: np.ndarray,
    even: float,
    interval_of: Callable[[np.ndarray], Interval],
    words: tuple[str, str],
    answers: int = 1,
) -> dict[str, Any]:
    """An interval, its verdict, and what would decide it.

    Args:
        values_PR: the comparisons.
        even: the value of no difference.
        interval_of: its interval.
        words: the verdicts above and below.
        answers: the answers that one comparison takes: the scores of two clips, or one choice.
    """
    interval = interval_of(values_PR)
    known_PR = np.isfinite(values_PR)
    prompts, raters = int(known_PR.any(1).sum()), int(known_PR.any(0).sum())
    verdict = words[0] if interval.low > even else words[1] if interval.high < even else "undecided"
    if prompts < FEWEST_PROMPTS:
        verdict = "undecided"
    found = _plain(interval) | {
        "verdict": verdict,
        "prompts": prompts,
        "raters": raters,
        "pairs": int(known_PR.sum()),
    }
    if verdict == "undecided":
        more = more_to_decide(interval.mean - even, spread(values_PR), prompts, raters)
        least = max(1, FEWEST_PROMPTS - prompts)
        more = More(
            None if more.prompts is None else max(more.prompts, least),
            None if more.raters is None or prompts < FEWEST_PROMPTS else max(more.raters, 1),
        )
        found["to_decide"] = {
            "prompts": more.prompts,
            "raters": more.raters,
            "ratings_by_prompts": None if more.prompts is None else more.prompts * raters * answers,
            "ratings_by_raters": None if more.raters is None else more.raters * prompts * answers,
        }
    return found


def _agreement(key: Key, answers: _Answers, others: Sequence[str]) -> dict[str, float | None]:
    """Krippendorff's alpha of each question; None where it means nothing."""
    asked = {scale: [answers.scores[scale, system] for system in key.systems] for scale in SCALES}
    asked["variety"] = [answers.wins[system] for system in others]
    found: dict[str, float | None] = {}
    for question, units in asked.items():
        ratings_UR = np.concatenate(units) if units else np.full((1, 1), np.nan)
        alpha = krippendorff_alpha(ratings_UR.T) if np.isfinite(ratings_UR).any() else math.nan
        found[question] = None if math.isnan(alpha) else round(alpha, 4)
    return found


def _rater(key: Key, rater: Rater) -> dict[str, Any]:
    return {
        "rater": rater.name,
        "file": rater.file.name,
        "answers": len(rater.answers),
        "items": len(key.items),
        "minutes": round(rater.minutes, 1),
    }


def _remarks(key: Key, raters: Sequence[Rater], answers: _Answers) -> list[str]:
    """What a reader of the numbers must know."""
    remarks = []
    if len(raters) == 1:
        remarks.append("One rater: the intervals are of this rater's taste, and say nothing of another's.")
    elif len(raters) < key.raters:
        remarks.append(f"{len(raters)} of {key.raters} planned raters.")
    for rater in raters:
        open_items = len(key.items) - len(rater.answers)
        if open_items:
            remarks.append(f"{rater.name} left {open_items} of {len(key.items)} items open.")
        hasty = sum(answer.get("seconds", HASTY) < HASTY for answer in rater.answers.values())
        if hasty:
            remarks.append(f"{rater.name} answered {hasty} items in less than {HASTY:g} seconds each.")
        given = {(answer[s]) for answer in rater.answers.values() for s in SCALES if s in answer}
        if len(given) == 1 and len(rater.answers) > FEWEST_PROMPTS:
            remarks.append(f"{rater.name} gave {given.pop()} to everything.")
    compared = next(iter(answers.wins.values()), np.full((1, 1), np.nan))
    few = {"quality": len(key.prompts), "variety": int(np.isfinite(compared).any(1).sum())}
    for question, prompts in few.items():
        if 0 < prompts < FEWEST_PROMPTS:
            text = f"expected at least {FEWEST_PROMPTS} prompts for a verdict, but {question} has {prompts}"
            remarks.append(f"{text[:1].upper()}{text[1:]}.")
    return remarks


def _plain(interval: Interval) -> dict[str, Any]:
    return {name: round(value, 4) for name, value in interval._asdict().items()}


# The table


def opinion_table(opinions: Mapping[str, Any]) -> str:
    """Opinions as text."""
    raters, against = opinions["raters"], opinions["against"]
    answered = sum(rater["answers"] for rater in raters)
    names = ", ".join(rater["rater"] for rater in raters)
    lines = [f"Page {opinions['page']}: {answered} answers by {names}.", ""]
    systems = opinions["systems"]
    if any(systems.values()):
        lines += ["Mean opinion from 1 to 5, with 95 % intervals over raters and prompts", ""]
        rows = [[name, *(_shown(found.get(scale), ".2f") for scale in SCALES)] for name, found in systems.items()]
        lines += [*aligned([["system", *SCALES], *rows]), ""]
    for question, title in (
        *((scale, f"Difference in {scale} from {against}, paired by prompt and rater") for scale in SCALES),
        ("variety", f"More varied than {against}: share of comparisons, an equal one counts half"),
    ):
        found = {name: each[question] for name, each in opinions["differences"].items() if question in each}
        if found:
            form = ".2f" if question == "variety" else "+.2f"
            rows = [[name, _shown(each, form), each["verdict"], _needed(each)] for name, each in found.items()]
            lines += [title, "", *aligned([["system", "mean", "verdict", "to decide"], *rows]), ""]
    agreement = {name: alpha for name, alpha in opinions["agreement"].items() if alpha is not None}
    if agreement:
        listed = ", ".join(f"{name} {alpha:.2f}" for name, alpha in agreement.items())
        lines.append(f"Agreement of raters (Krippendorff's alpha, ordinal; 1 perfect, 0 chance): {listed}.")
    if opinions["share_of_A"] is not None:
        lines.append(f"Group A was chosen in {opinions['share_of_A']:.0%} of the comparisons that were not equal.")
    return "\n".join([*lines, *opinions["remarks"]])


def _needed(comparison: Mapping[str, Any]) -> str:
    """How many more ratings would decide a comparison."""
    if comparison["verdict"] != "undecided":
        return ""
    more = comparison["to_decide"]
    ways = [
        f"{more[kind]} more {kind if more[kind] != 1 else kind[:-1]} ({more[f'ratings_by_{kind}']} ratings)"
        for kind in ("prompts", "raters")
        if more[kind] is not None
    ]
    return " or ".join(ways) or "no number of ratings up to 10,000"


def _shown(interval: Mapping[str, float] | None, form: str) -> str:
    if interval is None:
        return "-"
    return plainly(Interval(*(interval[part] for part in Interval._fields)), form)


# front.json


def add_opinions_to_front(file: Path, opinions: Mapping[str, Any]) -> None:
    """Add the mean opinions to the systems in front.json, under ``opinion``; an older one is replaced."""
    front = json.loads(file.read_text(encoding="utf-8"))
    for system in front["systems"]:
        found = dict(opinions["systems"].get(system["name"], {}))
        compared = opinions["differences"].get(system["name"], {}).get("variety")
        if compared:
            found["variety"] = {part: compared[part] for part in ("mean", "low", "high")}
        if found:
            system["opinion"] = found | {"page": opinions["page"], "raters": len(opinions["raters"])}
    with changing_front(file.parent, front):
        pass  # the picture shows no opinions
