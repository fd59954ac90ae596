"""Prompts: the Python reader and the generated Jinja template agree, and read English as a musician would."""

import itertools
import random
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from cfg_distill.errors import ConfigError
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.prompts import NULL, SLOTS, TABLE, chat_template, nothing_understood, prefix, understand
from cfg_distill.tunes.renderer import TuneRenderer
from cfg_distill.tunes.tokenizer import VALUES

PROMPTS = Path(__file__).parents[2] / "recipes" / "tunes" / "prompts"


def jinja(message: str) -> str:
    """The template's answer through transformers' own sandbox."""
    rendered, _ = render_jinja_template([[{"role": "user", "content": message}]], chat_template=chat_template())
    return rendered[0]


def slots(origin: str = NULL, rhythm: str = NULL, metre: str = NULL, mode: str = NULL) -> dict[str, str]:
    return dict(zip(SLOTS, (origin, rhythm, metre, mode), strict=True))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a lively Irish jig in D major", slots("irish", "jig", "6/8", "major")),
        ("SLIP JIG", slots(rhythm="slip jig", metre="9/8")),
        ("a jig, then a slip jig", slots(rhythm="jig", metre="6/8")),
        ("slip, jig", slots(rhythm="slip jig", metre="9/8")),
        ("an American reel in 2/4", slots("american", "reel", "2/4")),
        ("marching aircraft over Scotland", slots("scottish")),
        ("a sad waltz", slots(metre="3/4", mode="minor")),
        ("a sad waltz in a major key", slots(metre="3/4", mode="major")),
        ("a highland fling", slots(rhythm="strathspey", metre="4/4")),
        ("a highland air", slots("scottish", "air")),
        ("hornpipe in G", slots(rhythm="hornpipe", metre="4/4", mode="major")),
        ("hornpipe in E minor", slots(rhythm="hornpipe", metre="4/4", mode="minor")),
        ("in a pub, an air", slots(rhythm="air")),
        ("", slots()),
        ("  \n", slots()),
    ],
)
def test_prompt_is_read_as_a_musician_would(prompt: str, expected: dict[str, str]) -> None:
    assert understand(prompt).slots == expected
    assert jinja(prompt) == prefix(expected)


@pytest.mark.parametrize(
    ("prompt", "key"),
    [
        ("a reel in D major", "D"),
        ("a minor jig", None),
        ("a jig in A minor", "A"),
        ("a jig in a lively mood", None),
        ("jig in the key of B flat", "Bb"),
        ("E flat major reel", "Eb"),
        ("an F# minor air", "F#"),
        ("a B♭ major march", "Bb"),
        ("reel in the key of A", "A"),
        ("a reel", None),
    ],
)
def test_key(prompt: str, key: str | None) -> None:
    assert understand(prompt).key == key


def test_words_that_contradict_are_reported() -> None:
    assert understand("an Irish jig in D major and in E minor").contradicting == ("minor",)
    assert understand("a jig, a jig, a slow reel").contradicting == ("reel",)
    assert understand("an Irish jig in D major").contradicting == ()
    (remark,) = TuneRenderer().remarks(["an Irish jig in D major and in E minor"])
    assert "`minor` left out, since words before say otherwise" in remark


def test_unknown_words_and_tempo_are_reported() -> None:
    meaning = understand("A brisk psychedelic Irish reel in D minor with kazoo")
    assert meaning.unknown_words == ("psychedelic", "kazoo")
    assert meaning.tempo > 1 > understand("slow air").tempo


def test_none_is_the_unconditional_prompt() -> None:
    assert understand(None).slots == slots()


@pytest.mark.parametrize(
    "prompt", ["marching aircraft", "blues 'in' \"Chicago\" {{ 1 }}", "!!!", "reeling and jigging", "lively"]
)
def test_nothing_understood_says_what_is(prompt: str) -> None:
    with pytest.raises(ConfigError, match="slip jig") as python:
        understand(prompt)
    with pytest.raises(TemplateError, match="slip jig") as template:
        jinja(prompt)
    assert str(python.value) == str(template.value) == nothing_understood(prompt)


def test_python_and_template_agree() -> None:
    """Some hundred random prompts: keywords, their prefixes, fillers, odd casing and punctuation, unicode."""
    generator = random.Random(0)
    vocabulary = [
        *TABLE,
        "a",
        "in",
        "slip",
        "quick",
        "key of",
        "air craft",
        "reel-time",
        "jigsaw",
        "Émigré",
        "İ",
        "tune",
        "x",
    ]
    separators = [" ", "  ", ", ", "-", "\n", "... ", "'", ";", "\t", " — "]
    casings = [str.lower, str.upper, str.title, str.swapcase]
    for _ in range(400):
        pieces = [generator.choice(casings)(word) for word in generator.choices(vocabulary, k=generator.randint(1, 7))]
        prompt = "".join(itertools.chain(*[(piece, generator.choice(separators)) for piece in pieces]))
        try:
            expected = prefix(understand(prompt).slots)
        except ConfigError:
            with pytest.raises(TemplateError):
                jinja(prompt)
        else:
            assert jinja(prompt) == expected, prompt


def test_last_user_message_counts() -> None:
    messages = [
        {"role": "user", "content": "a jig"},
        {"role": "assistant", "content": "reel"},
        {"role": "user", "content": "an air"},
    ]
    rendered, _ = render_jinja_template([messages], chat_template=chat_template())
    assert rendered[0] == prefix(slots(rhythm="air"))


FILES = {"train": 40, "validation": 12, "report": 24, "development": 43, "report_96": 96}


def prompts_of(name: str) -> list[str]:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def test_prompt_files_are_understood_and_kept_apart() -> None:
    files = {name: [understand(prompt) for prompt in prompts_of(name)] for name in FILES}
    assert {name: len(meanings) for name, meanings in files.items()} == FILES
    assert not [meaning for meanings in files.values() for meaning in meanings if meaning.unknown_words]
    combinations = {name: {tuple(meaning.slots.values()) for meaning in meanings} for name, meanings in files.items()}
    for one, other in itertools.combinations(combinations, 2):
        assert not combinations[one] & combinations[other]
    wide = {tuple(understand(prompt).slots.values()) for prompt in prompts_of("train_wide")}
    assert len(wide) == 137 + len(combinations["train"]) and combinations["train"] <= wide
    assert not any(wide & combinations[name] for name in FILES if name != "train")
    for name in ("development", "report_96"):  # each asks for something else: a prompt is a cluster of its own
        assert len(combinations[name]) == FILES[name]


def test_the_wide_prompts_are_all_that_can_be_asked_and_no_other_file_asks() -> None:
    """Every combination that a prompt can say and a training tune has is in a file, and nothing else is."""
    said = set()
    for values in itertools.product(*([NULL, *VALUES[slot]] for slot in SLOTS)):
        words = {slot: value for slot, value in zip(SLOTS, values, strict=True) if value != NULL}
        if words:
            prompt = " ".join(f"in A {value}" if slot == "mode" else value for slot, value in words.items())
            said.add(tuple(understand(prompt).slots.values()))
    had = set()
    for tune in tunes_of("train"):
        had |= set(itertools.product(*((NULL, tune.slots[slot]) for slot in SLOTS)))
    names = [*FILES, "train_wide"]
    assert {tuple(understand(each).slots.values()) for name in names for each in prompts_of(name)} == said & had


def test_every_prompt_asks_for_something_the_corpus_has() -> None:
    """Prompts that are only trained on, by a student whose teacher knows them, may ask for what is rare."""
    tunes = [tune.slots for tune in tunes_of("train")]
    for name, least in {**dict.fromkeys(FILES, 8), "train_wide": 1}.items():
        for prompt in prompts_of(name):
            asked = {slot: value for slot, value in understand(prompt).slots.items() if value != NULL}
            assert sum(asked.items() <= slots.items() for slots in tunes) >= least, prompt


def test_table_names_only_values_of_the_model() -> None:
    for phrase, keyword in TABLE.items():
        for slot, value in (*keyword.says.items(), *keyword.implies.items()):
            assert value in VALUES[slot], phrase
