"""English prompts to condition slots, by one table of keywords.

The model is conditioned on four slots: origin, rhythm, metre, mode. The same table is read by :func:`understand` (Python:
slots, key, tempo and the words that meant nothing) and by the chat template (Jinja: slots only), which is stored in the
tokenizer, so that an exported student reads plain English with transformers alone.

How a prompt is read: lower case; every character that is not a letter, digit, ``#`` or ``/`` parts words; from left to
right the longest keyword that starts at a word is taken ("slip jig" before "jig"), whole words only ("marching" is not
"march"). The first mention of a slot wins. A keyword may also IMPLY slots (a jig is in 6/8, a sad tune is minor): these
count only where nothing was said. A slot neither said nor implied stays null.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cfg_distill.errors import ITS_PROMPT, ConfigError, Problem, PromptProblem

SLOTS = ("origin", "rhythm", "metre", "mode")
NULL = "any"

_WORD_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789#/"
_MODES = ("major", "minor", "dorian", "mixolydian")


@dataclass(frozen=True)
class Keyword:
    """The slots that a word or phrase says and implies, and, for rendering alone, its factor on the usual tempo."""

    says: dict[str, str] = field(default_factory=dict)
    implies: dict[str, str] = field(default_factory=dict)
    tempo: float = 1.0


def _table() -> dict[str, Keyword]:
    """The keywords, by phrase: the single source of :func:`understand` and of :func:`chat_template`."""
    table: dict[str, Keyword] = {}

    def add(
        phrases: str, says: dict[str, str] | None = None, implies: dict[str, str] | None = None, tempo: float = 1.0
    ) -> None:
        for phrase in phrases.split(", "):
            table[phrase] = Keyword(says or {}, implies or {}, tempo)

    add("irish, ireland, dublin, kerry, cork, o neill", {"origin": "irish"})
    add("scottish, scots, scotland, highland, highlands, edinburgh, glasgow", {"origin": "scottish"})
    add("american, america, new england, yankee, boston, appalachian", {"origin": "american"})
    add("english, england, northumbrian, northumbria, northumberland, newcastle", {"origin": "english"})

    add("jig, jigs, double jig, double jigs, single jig", {"rhythm": "jig"}, {"metre": "6/8"})
    add("slip jig, slip jigs, slipjig, slipjigs, hop jig, hop jigs", {"rhythm": "slip jig"}, {"metre": "9/8"})
    add("reel, reels", {"rhythm": "reel"}, {"metre": "4/4"})
    add("hornpipe, hornpipes, clog, clogs", {"rhythm": "hornpipe"}, {"metre": "4/4"})
    add("strathspey, strathspeys, highland fling, fling", {"rhythm": "strathspey"}, {"metre": "4/4"})
    add("march, marches, quickstep, quick step", {"rhythm": "march"})
    add("air, airs, song, songs, ballad", {"rhythm": "air"})
    add("slow air, slow airs, lament, lullaby", {"rhythm": "air"}, tempo=0.75)

    add("6/8, 6/8 time, six eight", {"metre": "6/8"})
    add("9/8, 9/8 time, nine eight", {"metre": "9/8"})
    add("4/4, 4/4 time, four four, common time", {"metre": "4/4"})
    add("2/4, 2/4 time, two four, polka, polkas", {"metre": "2/4"})
    add("3/4, 3/4 time, three four, waltz, waltzes, minuet, waltz time", {"metre": "3/4"})

    for mode in _MODES:
        add(mode, {"mode": mode})
    add("sad, melancholy, mournful, plaintive, sorrowful, dark, gloomy", implies={"mode": "minor"})
    add("happy, cheerful, bright, merry, joyful, sunny", implies={"mode": "major"})
    # A key without a mode is read as musicians do: "in G" is G major. "in A" is left out: it is English ("in a pub").
    for key in ("b", "c", "d", "e", "f", "g", "bb", "eb", "ab", "f#", "c#"):
        add(f"in {key}, key of {key}", implies={"mode": "major"})

    add("lively, fast, quick, brisk, energetic, spirited, driving", tempo=1.15)
    add("slow, gentle, calm, quiet, tender, stately", tempo=0.8)
    return table


TABLE = _table()
_LONGEST = max(len(phrase.split()) for phrase in TABLE)
_FILLER_TEXT = (
    "a an and the of in on for from with to by at as is it its that this my me some please i write play compose make "
    "give want would like tune tunes music piece melody dance dancing traditional trad folk country old style time key "
    "set mode mood feel feeling very rather number session fiddle sharp flat 19th century"
)
_FILLERS = frozenset(_FILLER_TEXT.split())

UNDERSTOOD = (
    "origin (Irish, Scottish, American, English), rhythm (reel, jig, slip jig, hornpipe, strathspey, march, air), "
    "metre (2/4, 3/4, 4/4, 6/8, 9/8, waltz, polka), mode (major, minor, dorian, mixolydian, sad, cheerful)"
)


@dataclass(frozen=True)
class Understanding:
    """The meaning of a prompt.

    Attributes:
        slots: slot -> value for all four slots, ``any`` where the prompt says nothing.
        key: tonic such as "D", "Bb" or "F#"; used when rendering, not seen by the model. None: not said.
        tempo: factor on the usual tempo of the rhythm, from words such as "lively" and "slow"; for rendering.
        unknown_words: words that meant nothing and are not mere filler.
        contradicting: words that say something else than words before them, which count.
    """

    slots: dict[str, str]
    key: str | None = None
    tempo: float = 1.0
    unknown_words: tuple[str, ...] = ()
    contradicting: tuple[str, ...] = ()


def words_of(text: str) -> list[str]:
    """The lower-case words of a prompt; every other character than a letter, digit, ``#`` and ``/`` parts words."""
    text = text.lower().replace("♭", "b").replace("♯", "#")
    return "".join(character if character in _WORD_CHARACTERS else " " for character in text).split()


def nothing_understood(prompt: str) -> str:
    """The message for a prompt without a single keyword; the chat template raises the same one."""
    return (
        f"Expected a prompt that says something about a tune, but understood nothing in: {prompt}"
        f" - say one or more of: {UNDERSTOOD}"
    )


def understand(prompt: str | None) -> Understanding:
    """Reads a prompt into slots, key and tempo.

    None and blank text are the unconditional prompt: all slots null.

    Raises:
        ConfigError: the prompt is not blank and none of its words fills a slot.
    """
    words = words_of(prompt or "")
    said: dict[str, str] = {}
    implied: dict[str, str] = {}
    tempo = 1.0
    unknown: list[str] = []
    contradicting: list[str] = []
    position = 0
    while position < len(words):
        for length in range(_LONGEST, 0, -1):
            keyword = TABLE.get(" ".join(words[position : position + length]))
            if keyword is not None and position + length <= len(words):
                if any(said.get(slot, value) != value for slot, value in keyword.says.items()):
                    contradicting.append(" ".join(words[position : position + length]))
                said = {**keyword.says, **said}
                implied = {**keyword.implies, **implied}
                tempo *= keyword.tempo
                break
        else:
            length = 1
            if words[position] not in _FILLERS and not _is_key(words, position):
                unknown.append(words[position])
        position += length
    slots = {slot: said.get(slot, implied.get(slot, NULL)) for slot in SLOTS}
    if (prompt or "").strip() and all(value == NULL for value in slots.values()):
        raise ConfigError(nothing_understood(prompt or ""))
    return Understanding(slots, key_of(words), min(max(tempo, 0.6), 1.4), tuple(unknown), tuple(contradicting))


def problems_of_prompts(prompts: Iterable[str]) -> list[Problem]:
    """Why these prompts mean nothing to a model of tunes, or to a metric of them."""
    found: list[Problem] = []
    for prompt in prompts:
        try:
            understand(prompt)
        except ConfigError:
            found.append(PromptProblem.of(prompt, nothing_understood(ITS_PROMPT)))
    return found


def _is_key(words: list[str], position: int) -> bool:
    """Whether the word is the tonic of a key: a note name just before a mode or an accidental."""
    following = words[position + 1] if position + 1 < len(words) else ""
    return _tonic(words[position]) is not None and following in (*_MODES, "flat", "sharp")


def _tonic(word: str) -> str | None:
    """The note a word names ("bb" -> "Bb"), or None."""
    is_note = word[:1] in tuple("abcdefg") and word[1:] in ("", "b", "#")
    return word[0].upper() + word[1:] if is_note else None


def key_of(words: list[str]) -> str | None:
    """The tonic named in the prompt: "in G", "key of B flat", "E minor", "in A dorian"; None if there is none.

    The article is not a key: "a minor jig" has none, "in A minor" has A; "in a lively mood" has none.
    """
    for position, word in enumerate(words):
        note = _tonic(word)
        if note is None:
            continue
        before = words[max(0, position - 2) : position]
        after = words[position + 1 : position + 3]
        accidental = {"flat": "b", "sharp": "#"}.get(after[0], "") if after and len(note) == 1 else ""
        mode = after[1:2] if accidental else after[:1]
        is_named = before[-1:] == ["in"] or before == ["key", "of"]
        has_mode = bool(mode) and mode[0] in _MODES
        if word == "a" and not accidental:
            if is_named and (has_mode or before == ["key", "of"]):
                return "A"
        elif is_named or has_mode:
            return note + accidental
    return None


def prefix(slots: dict[str, str]) -> str:
    """The condition prefix of a sequence: ``<origin:irish> <rhythm:jig> <metre:6/8> <mode:any> <s>``."""
    return " ".join(f"<{slot}:{slots.get(slot, NULL)}>" for slot in SLOTS) + " <s>"


def chat_template() -> str:
    """The Jinja chat template that maps the last user message to the condition prefix; generated from :data:`TABLE`.

    An empty message gives the null prefix (the unconditional prompt). A message in which nothing is understood ends in
    ``raise_exception`` with the text of :func:`nothing_understood`.
    """

    says = repr({phrase: keyword.says for phrase, keyword in TABLE.items()})
    implies = repr({phrase: keyword.implies for phrase, keyword in TABLE.items() if keyword.implies})
    before, after = nothing_understood("\0").split("\0")
    slots = " ~ ' ' ~ ".join(f"'<{slot}:' ~ (state.{slot} or state.implied_{slot} or '{NULL}') ~ '>'" for slot in SLOTS)
    take = "".join(
        f"{{%- if '{slot}' in says[phrase] and not state.{slot} %}}"
        f"{{%- set state.{slot} = says[phrase]['{slot}'] %}}{{%- endif %}}\n"
        f"{{%- if phrase in implies and '{slot}' in implies[phrase] and not state.implied_{slot} %}}"
        f"{{%- set state.implied_{slot} = implies[phrase]['{slot}'] %}}{{%- endif %}}\n"
        for slot in SLOTS
    )
    start = ", ".join(f"{slot}='', implied_{slot}=''" for slot in SLOTS)
    filled = " or ".join(f"state.{slot} or state.implied_{slot}" for slot in SLOTS)
    return (
        f"{{%- set says = {says} %}}\n"
        f"{{%- set implies = {implies} %}}\n"
        f"{{%- set state = namespace(message='', text='', next=0, found='', {start}) %}}\n"
        "{%- for message in messages %}{%- if message['role'] == 'user' %}"
        "{%- set state.message = message['content'] or '' %}{%- endif %}{%- endfor %}\n"
        "{%- for character in state.message.lower().replace('♭', 'b').replace('♯', '#') %}"
        f"{{%- set state.text = state.text ~ (character if character in '{_WORD_CHARACTERS}' else ' ') %}}"
        "{%- endfor %}\n"
        "{%- set words = state.text.split() %}\n"
        "{%- for word in words %}{%- if loop.index0 >= state.next %}{%- set position = loop.index0 %}\n"
        "{%- set state.found = '' %}\n"
        f"{{%- for length in range({_LONGEST}, 0, -1) %}}\n"
        "{%- set phrase = words[position:position + length] | join(' ') %}\n"
        "{%- if not state.found and position + length <= words | length and phrase in says %}\n"
        "{%- set state.found = phrase %}{%- set state.next = position + length %}\n"
        f"{take}"
        "{%- endif %}{%- endfor %}{%- endif %}{%- endfor %}\n"
        f"{{%- if state.message.strip() and not ({filled}) %}}"
        f"{{{{- raise_exception({before!r} ~ state.message ~ {after!r}) }}}}{{%- endif %}}\n"
        f"{{{{- {slots} ~ ' <s>' }}}}"
    )
