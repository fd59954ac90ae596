"""The tunes that the embedded model learns from: four printed collections, read as text from the music21 package.

O'Neill's Music of Ireland (1903), Ryan's Mammoth Collection (1883), Aird's Airs (1778-1803), Northumbrian Minstrelsy
(1882) with American fife tunes. The melodies are in the public domain; the transcriptions carry no explicit grant, so
nothing of them is stored here: they are read where music21 is installed. music21 itself is not imported (its own
parser needs minutes).
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path

from cfg_distill.errors import ConfigError
from cfg_distill.tunes.abc import BARS, Note, NotOneVoiceError, Score, most_common_length, note_token, parse_note, read
from cfg_distill.tunes.bars import METRES, bar_validity
from cfg_distill.tunes.split import SPLITS, assign_splits, cluster

COLLECTIONS = {"oneills1850": "irish", "ryansMammoth": "american", "airdsAirs": "scottish", "miscFolk": "english"}
MODES = ("major", "minor", "dorian", "mixolydian")
LONGEST = 400  # notes and bars

# Where O'Neill prints what: the numbers of his book, for transcriptions without an R: field.
_ONEILL = (
    (1, "air"), (693, "jig"), (1111, "slip jig"), (1176, "reel"), (1558, "hornpipe"), (1751, None), (1801, "march"),
)  # fmt: skip
_RHYTHMS = (
    (r"slip ?jig|hop jig", "slip jig"), (r"reel", "reel"), (r"strathspey|strathpey", "strathspey"),
    (r"hornpipe|clog", "hornpipe"), (r"march|quick ?-?step|troop|retreat", "march"), (r"jig", "jig"),
    (r"\bairs?\b|lament|slow|minuet|waltz", "air"),
)  # fmt: skip


@dataclass(frozen=True)
class Tune:
    """One tune.

    Attributes:
        name: collection, number and title, unique.
        origin, rhythm, metre, mode: the conditions; "any" where the source does not say.
        tokens: notes and bars, tonic moved to C (see abc.py).
        cluster: number of its family of near-duplicates.
        split: train, validation or test; a family is never parted.
    """

    name: str
    origin: str
    rhythm: str
    metre: str
    mode: str
    tokens: tuple[str, ...]
    cluster: int = -1
    split: str = "train"

    @property
    def slots(self) -> dict[str, str]:
        return {"origin": self.origin, "rhythm": self.rhythm, "metre": self.metre, "mode": self.mode}


def corpus_folder() -> Path:
    """The folder of the installed music21's scores; music21 is located, not imported.

    Raises:
        ConfigError: music21 is not installed.
    """
    found = importlib.util.find_spec("music21")
    if found is None or found.origin is None:
        raise ConfigError("Expected the package `music21` (the tunes are read from it), but it is not installed.")
    return Path(found.origin).parent / "corpus"


@cache
def load_corpus() -> tuple[Tune, ...]:
    """All usable tunes in a fixed order, with family and split; about ten seconds the first time in a process."""
    tunes: list[Tune] = []
    for collection, origin in COLLECTIONS.items():
        for path in sorted((corpus_folder() / collection).glob("*.abc")):
            tunes.extend(parse_tunes(path.read_text(encoding="utf-8", errors="replace"), collection, origin))
    return finish(tunes)


def tunes_of(split: str) -> list[Tune]:
    """The tunes of "train", "validation" or "test"."""
    if split not in SPLITS:
        raise ValueError(f"Expected argument `split` to be one of {SPLITS} but got {split!r}")
    return [tune for tune in load_corpus() if tune.split == split]


def finish(tunes: Sequence[Tune], rare: int = 5) -> tuple[Tune, ...]:
    """Drop duplicates, fold tokens of fewer than ``rare`` tunes, number the families of near-duplicates, deal the
    families to the splits."""
    unique: dict[tuple[str, ...], Tune] = {}
    for tune in tunes:
        unique.setdefault(tune.tokens[:40], tune)
    counts = Counter(token for tune in unique.values() for token in set(tune.tokens))
    known = {token for token, count in counts.items() if count >= rare}
    folded = [(tune, fold(tune.tokens, known)) for tune in unique.values()]
    kept = [replace(tune, tokens=tokens) for tune, tokens in folded if tokens is not None]
    families = cluster([pitches_of(tune.tokens) for tune in kept])
    splits = assign_splits(families)
    return tuple(
        replace(tune, cluster=family, split=split) for tune, family, split in zip(kept, families, splits, strict=True)
    )


def fold(tokens: Sequence[str], known: set[str]) -> tuple[str, ...] | None:
    """Every token outside ``known`` as two known notes of the same pitch and the same length together, else an octave
    nearer; None when neither is known. Bars keep their lengths."""
    folded: list[str] = []
    for token in tokens:
        if token in known:
            folded.append(token)
            continue
        note = parse_note(token)
        if note is None:
            return None
        pitch, length = note
        options = [
            [note_token(pitch, part), note_token(pitch, length - part)]
            for part in (Fraction(half, 2) for half in range(16, 0, -1))
            if part < length
        ]
        if pitch is not None:
            options += [[note_token(pitch + 12, length)], [note_token(pitch - 12, length)]]
        fitting = [option for option in options if all(piece in known for piece in option)]
        if not fitting:
            return None
        folded.extend(fitting[0])
    return tuple(map(sys.intern, folded))


def vocabulary(tunes: Iterable[Tune]) -> list[str]:
    """The music tokens of the tunes: bars first, then notes from low to high and short to long, rests last."""
    present = {token for tune in tunes for token in tune.tokens}

    def order(token: str) -> tuple[float, Fraction]:
        pitch, length = parse_note(token) or (None, Fraction(0))
        return (float("inf") if pitch is None else pitch), length

    return [bar for bar in BARS if bar in present] + sorted(present - set(BARS), key=order)


def parse_tunes(text: str, collection: str, origin: str) -> list[Tune]:
    """The usable tunes of one ABC file."""
    tunes = []
    for block in re.split(r"(?m)^X:", text)[1:]:
        try:
            tune = make_tune(read(block), f"{collection}/{block.splitlines()[0].strip()}", origin)
        except (NotOneVoiceError, ZeroDivisionError, ValueError):
            continue
        if tune is not None:
            tunes.append(tune)
    return tunes


def make_tune(score: Score, name: str, origin: str) -> Tune | None:
    """A tune from a score, or None when it is not usable: a transcription by Norbeck, too long or short, bars that do
    not add up (more than 30 %), a pitch or length that almost no tune has."""
    fields = score.fields
    if "norbeck" in " ".join(fields.get("Z", [])).lower():
        return None
    events, metre = score.events, score.metre
    if metre == "2/4" and most_common_length(events) == Fraction(1, 2):
        # The same music written in half the values (Ryan's reels): one way of writing, so that the bars compare.
        events = [Note(event.pitch, event.length * 2) if isinstance(event, Note) else event for event in events]
        metre = "4/4"
    pitches = [event.pitch for event in events if isinstance(event, Note) and event.pitch is not None]
    if not pitches or not 24 <= len(events) <= LONGEST:
        return None
    tonic, mode = settle_mode(score.tonic, score.mode, events)
    # The octave of the tonic: the mean of the tune lies within the octave above it.
    mean = sum(pitches) / len(pitches)
    tonic += 12 * int((mean - tonic) // 12)
    tokens = []
    for event in events:
        if isinstance(event, str):
            tokens.append(event)
        else:
            tokens.append(note_token(None if event.pitch is None else event.pitch - tonic, event.length))
    if bar_validity(" ".join(tokens), metre) < 0.7:
        return None
    title = (fields.get("T") or [""])[0]
    return Tune(
        name=f"{name} {title}".strip(),
        origin=_origin(fields, origin, name),
        rhythm=_rhythm(fields, metre, name),
        metre=metre if metre in METRES else "any",
        mode=mode if mode in MODES else "any",
        tokens=tuple(map(sys.intern, tokens)),  # each token once, and not 500,000 strings
    )


def settle_mode(tonic: int, mode: str, events: Sequence[Note | str]) -> tuple[int, str]:
    """Tonic and mode. "K:G" often gives only the key signature: a tune in it that closes on A throughout is A dorian.

    Only a key given as major is doubted, and only when the tune's last note and the last note of its first part agree.
    """
    if mode != "major":
        return tonic, mode
    last: int | None = None
    closes: list[int] = []
    for event in [*events, "||"]:
        if isinstance(event, Note):
            last = event.pitch if event.pitch is not None else last
        elif event in ("||", ":|", "::") and last is not None:
            closes.append(last % 12)
    step = (closes[-1] - tonic) % 12
    found = {2: "dorian", 9: "minor"}.get(step)
    if found is None or len(set(closes)) > 1 or len(closes) < 2:
        return tonic, mode
    return closes[-1], found


def pitches_of(tokens: Iterable[str]) -> list[int]:
    """The pitches in order, without rests, lengths and bars."""
    notes = (parse_note(token) for token in tokens)
    return [note[0] for note in notes if note is not None and note[0] is not None]


def _origin(fields: dict[str, list[str]], origin: str, name: str) -> str:
    said = " ".join(fields.get("O", [])).lower()
    if "scotch" in said:
        return "scottish"
    if "irish" in said:
        return "irish"
    return "american" if name.startswith("miscFolk") and "Minstrelsy" not in " ".join(fields.get("S", [])) else origin


def _rhythm(fields: dict[str, list[str]], metre: str, name: str) -> str:
    said = " ".join(fields.get("R", [])).lower()
    compound = {"6/8": "jig", "9/8": "slip jig"}
    for text in (said, " ".join(fields.get("T", [])).lower()):
        for pattern, rhythm in _RHYTHMS:
            if re.search(pattern, text):
                # A "jig" in 9/8 is a slip jig, and a reel is never in triple time: the word is part of a name.
                if rhythm == "jig":
                    return compound.get(metre, "any")
                fits = metre in ("2/4", "4/4") if rhythm in ("reel", "hornpipe", "strathspey") else True
                if fits:
                    return rhythm
    if name.startswith("oneills"):
        number = re.search(r"\b(\d{1,4})\b", " ".join([*fields.get("B", []), *fields.get("S", [])]).replace("1850", ""))
        place = int(number[1]) if number else int(re.search(r"/(\d*)", name)[1] or 0)  # type: ignore[index]
        found = [rhythm for start, rhythm in _ONEILL if start <= place]
        return (found[-1] if found else None) or "any"
    return compound.get(metre, "any") if name.startswith("ryans") else "any"


def summary(tunes: Sequence[Tune]) -> dict[str, dict[str, int]]:
    """How many tunes there are by split, origin, rhythm, metre and mode."""
    values = [{"split": tune.split} | tune.slots for tune in tunes]
    parts = ("split", "origin", "rhythm", "metre", "mode")
    return {part: dict(Counter(value[part] for value in values).most_common()) for part in parts}
