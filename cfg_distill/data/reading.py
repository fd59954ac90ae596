"""Prompts from files: text, JSON lines, CSV, and Hugging Face datasets on disk. No torch in here."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem, PromptProblem, listed, nearest, said_of
from cfg_distill.folders import find_file
from cfg_distill.prompt import PLACE as PLACE
from cfg_distill.prompt import TEACHER, Prompt, problem_of_conditions, problem_of_text
from cfg_distill.prompt import PromptLike as PromptLike

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv")
CONDITION = "conditions."
"""What the names of columns of conditions begin with."""
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff")
"""Of files of sound that are read."""
_LISTED = 5
_UNSEEN = dict.fromkeys(map(ord, "\ufeff\u200b\u2060\u00ad"))
"""Marks of no width: of the byte order, of a place to break a line or not to, of a hyphen."""


def read_prompts(path: str | Path, field: str = "prompt") -> list[PromptLike]:
    """The prompts of a file, in its order, without blank ones.

    ``.txt``: one prompt per line. ``.jsonl``: per line a JSON object, of which ``field`` is read, or a JSON string.
    ``.csv`` and ``.tsv``: the column ``field`` under a header. A folder: a dataset that Hugging Face ``datasets`` saved to
    disk, its column ``field``. A path ``recipes/...`` that does not exist is looked up among the shipped recipes.

    What else a prompt conditions on stands in the JSON object ``conditions`` (``{"prompt": "80s synth pop", "conditions":
    {"melody": "tune.wav"}}``) or in a column ``conditions.melody``: such prompts are :class:`~cfg_distill.prompt.Prompt`. The
    column ``teacher_prompt``, where there is one, holds what the teacher of a distillation reads instead, with the prompt at
    ``{prompt}``. An empty cell of a table is none.

    Raises:
        ConfigError: the file is missing, empty, of another kind, or lacks the field; all prompts that are too long or hold
            control characters, by their lines.

    Example:
        >>> read_prompts("recipes/no-such-file.txt")
        Traceback (most recent call last):
        cfg_distill.errors.ConfigError: Expected a file of prompts, but `recipes/no-such-file.txt` does not exist. ...
    """
    return [prompt for _, prompt in numbered_prompts(path, field)]


def numbered_prompts(path: str | Path, field: str = "prompt") -> list[tuple[int, PromptLike]]:
    """The prompts of a file with their lines; of a dataset, with their rows. Arguments and errors: :func:`read_prompts`."""
    file = find_file(path)
    if not str(path) or not file.exists():
        raise ConfigError(f"Expected a file of prompts, but `{path}` does not exist. Check the path.")
    if not file.is_dir() and file.suffix not in SUFFIXES:
        raise ConfigError(f"Expected a file of prompts, one of {', '.join(SUFFIXES)}, but got `{path}`.")
    try:
        rows = list(enumerate(_saved_dataset(file, field), start=1) if file.is_dir() else _rows(file, field))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"File `{path}`: expected text in UTF-8, but it cannot be read: {error}. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"File `{path}`: cannot be read: {error.strerror}. Change its permissions.") from error
    wrong = [(number, said) for number, row in rows if (said := _problem_of(Prompt.of(row)))]
    if wrong:
        more = f" So it is in {len(wrong) - _LISTED} further lines." if len(wrong) > _LISTED else ""
        found = [f"File `{path}`, line {number}: {said}" for number, said in wrong[:_LISTED]]
        raise ConfigError([*found[:-1], found[-1] + more])
    prompts = [(number, prompt) for number, row in rows if normalised(prompt := _stripped(row))]
    if not prompts:
        raise ConfigError(f"Expected at least one prompt, but `{path}` holds none. Write one per line.")
    return prompts


def together(
    found: Iterable[Problem],
    path: str | Path = "",
    field: str = "prompt",
    asked: Callable[[PromptLike], Sequence[PromptLike]] = lambda prompt: [prompt],
) -> list[Problem]:
    """Problems of prompts, those with one cause as one, by their lines in a file. Other problems stay as they are.

    Args:
        found: the problems; a :class:`~cfg_distill.errors.PromptProblem` is one of a prompt.
        path: the file of the prompts, which can be read; empty where they are in none.
        field: see :func:`read_prompts`.
        asked: what a model is asked for a prompt of the file, where that is not the prompt itself.
    """
    causes: dict[Problem, list[PromptLike]] = {}
    for problem in found:
        if isinstance(problem, PromptProblem):
            causes.setdefault(replace(problem, text="", prompt=""), []).append(problem.prompt)
        else:
            causes[problem] = []
    rows = numbered_prompts(path, field) if path and any(causes.values()) else []
    told = []
    for cause, wrong in causes.items():
        if not isinstance(cause, PromptProblem):
            told.append(cause)
            continue
        alike = {*map(Prompt.of, wrong)}
        lines = {
            number: str(row)
            for number, row in rows
            if any(alike & {Prompt.of(each), Prompt(str(each))} for each in asked(row))  # a metric knows texts alone
        }
        said = said_of(list(dict.fromkeys(lines.values() if lines else map(str, wrong))), cause.reason)
        if lines:
            where = f"line{'s' * (len(lines) > 1)} {listed([*map(str, lines)], 3)}"
            said = f"File `{path}`, {where}: {said}"
        told.append(Problem(cause.key, said, cause.prefix))
    return told


def _problem_of(prompt: Prompt) -> str:
    texts = (prompt.text, *prompt.conditions.values(), prompt.teacher_prompt or "")
    return next((said for said in map(problem_of_text, texts) if said), "")


def normalised(prompt: PromptLike) -> str:
    """The prompt without what does not tell two prompts apart: case, space, what no eye sees, and how an accent is coded.

    Example:
        >>> normalised("  An Irish   jig ")
        'an irish jig'
    """
    text = unicodedata.normalize("NFKC", Prompt.of(prompt).text).translate(_UNSEEN)
    return " ".join(text.casefold().split())


def identity(prompt: PromptLike) -> tuple[str, frozenset[tuple[str, str]]]:
    """What tells two prompts apart: the text without case and space, and the conditions.

    Example:
        >>> identity("A  Jig") == identity("a jig")
        True
    """
    return normalised(prompt), frozenset(Prompt.of(prompt).conditions.items())


def in_both(prompts: Iterable[PromptLike], others: Iterable[PromptLike]) -> list[str]:
    """The texts of the second list whose prompts the first has, too: under the same conditions, up to case and space."""
    known = {identity(prompt) for prompt in prompts}
    return [Prompt.of(prompt).text for prompt in others if identity(prompt) in known]


def templated(template: str | None, prompts: Sequence[PromptLike]) -> list[PromptLike]:
    """Each prompt put into a template, with its conditions; as it is where there is no template.

    Example:
        >>> [str(prompt) for prompt in templated("Be surprising. {prompt}", ["a haiku", "a tune"])]
        ['Be surprising. a haiku', 'Be surprising. a tune']
    """
    return list(prompts) if template is None else [Prompt.of(prompt).within(template) for prompt in prompts]


def _rows(file: Path, field: str) -> Iterable[tuple[int, PromptLike]]:
    """The prompts with their lines; of a cell of several lines the last."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if file.suffix == ".txt":
            # A mark of the byte order stands inside, too, where two files were joined.
            yield from enumerate((line.rstrip("\r\n").removeprefix("\ufeff") for line in lines), start=1)
        elif file.suffix == ".jsonl":
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _of_json(file, number, line, field)
        else:
            table = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
            last = 0
            try:
                names = table.fieldnames = [name.strip() for name in table.fieldnames or []]
                last = table.line_num
                if last and (any(name and names.count(name) > 1 for name in names) or CONDITION in names or not names):
                    text = f"expected a header that names each column once, but got {names}. Mend that line."
                    raise ConfigError(f"File `{file}`, line 1: {text}")
                if names and field not in names:
                    raise ConfigError(_no_field(f"File `{file}`", field, names))
                for row in table:
                    if None in row:  # cells beyond the header
                        text = (
                            f"it has more than the {len(row) - 1} cells of the header: put texts with commas in quotes"
                        )
                        raise csv.Error(text)
                    last = table.line_num
                    yield last, _of_row(f"File `{file}`, line {last}", row, field)
            except csv.Error as error:  # of a row that is not read, its number is that of the row before
                where = f"File `{file}`, line {max(table.line_num, last + 1)}"
                raise ConfigError(f"{where}: expected CSV, but {str(error).rstrip('.')}. Mend that line.") from error


def _stripped(prompt: PromptLike) -> PromptLike:
    return prompt.but(prompt.text.strip()) if isinstance(prompt, Prompt) else prompt.strip()


def _of_row(where: str, row: dict[str, str | None], field: str) -> PromptLike:
    conditions = {
        name.removeprefix(CONDITION): value.strip()
        for name, value in row.items()
        if name.startswith(CONDITION) and value and value.strip()
    }
    return _prompt(where, row[field] or "", (row.get(TEACHER) or "").strip() or None, conditions)


def _of_json(file: Path, number: int, line: str, field: str) -> PromptLike:
    where = f"File `{file}`, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: expected a JSON object, but it cannot be read: {error}. Mend that line."
        ) from error
    return _of_object(where, row if isinstance(row, dict) else {field: row}, field)


def _of_object(where: str, row: Mapping[str, Any], field: str) -> PromptLike:
    """The prompt in an object of JSON, or in a row of a dataset."""
    if field not in row:
        raise ConfigError(_no_field(where, field, row))
    conditions, of_teacher, prompt = row.get("conditions") or {}, row.get(TEACHER), row[field]
    for name, text in ((field, prompt), (TEACHER, of_teacher)):
        if not isinstance(text, str) and (name == field or text is not None):
            raise ConfigError(f"{where}: expected text in `{name}`, but got {type(text).__name__}. Put it in quotes.")
    if of_teacher is not None and not of_teacher.strip():
        raise ConfigError(
            f"{where}: expected text in `{TEACHER}`, but it is empty. Write what the teacher reads, `{PLACE}` for the prompt"
            " itself; or leave the field out."
        )
    if not isinstance(conditions, dict) or not all(isinstance(value, str) for value in conditions.values()):
        raise ConfigError(
            f'{where}: expected names and texts in `conditions`, as {{"melody": "tune.wav"}}, but got {conditions}.'
        )
    return _prompt(where, prompt, of_teacher, conditions)


def _prompt(where: str, text: str, of_teacher: str | None, conditions: Mapping[str, str]) -> PromptLike:
    """A plain text where there is nothing else."""
    if said := problem_of_conditions(conditions):
        raise ConfigError(f"{where}: {said}")
    return Prompt(text, of_teacher, **conditions) if conditions or of_teacher else text


def _saved_dataset(folder: Path, field: str) -> Iterator[PromptLike]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Expected a file of prompts ({', '.join(SUFFIXES)}), but `{folder}` is a folder. To read a Hugging Face"
            " dataset saved to disk, run `pip install datasets`."
        ) from error
    try:
        rows: Any = datasets.load_from_disk(str(folder))
    except FileNotFoundError as error:
        raise ConfigError(
            f"Folder `{folder}`: expected a dataset saved by Hugging Face datasets, but {error}"
        ) from error
    if isinstance(rows, dict):
        raise ConfigError(
            f"Folder `{folder}`: expected one split of a dataset. Name one, as `{folder}/{next(iter(rows))}`."
        )
    if field not in rows.column_names:
        raise ConfigError(_no_field(f"Folder `{folder}`", field, rows.column_names))
    names = [name for name in rows.column_names if name in (field, TEACHER, "conditions") or name.startswith(CONDITION)]
    for number, cells in enumerate(zip(*(rows[name] for name in names), strict=True), start=1):
        row = dict(zip(names, cells, strict=True))
        given = row.get("conditions") or {}
        if isinstance(given, Mapping):
            given = {
                **given,
                **{name.removeprefix(CONDITION): value for name, value in row.items() if name.startswith(CONDITION)},
            }
            # Arrow gives every row all the names that some row has.
            row["conditions"] = {name: value for name, value in given.items() if value not in (None, "")}
        yield _of_object(f"Folder `{folder}`, row {number}", row, field)


def _no_field(where: str, field: str, known: Iterable[str]) -> str:
    names = list(known)
    hint = nearest(field, names) or (f" It may be `{names[0]}`." if names else "")
    text = f"{where}: expected a field `{field}`, but it has {names}.{hint}"
    return f"{text} Rename it in the file, or name yours as `field` of a recipe or a study."
