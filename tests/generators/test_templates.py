"""Chat templates are programs of strangers: what they may take of time and memory."""

from __future__ import annotations

import resource
import time

import pytest
from tiny import tiny_tokenizer

from cfg_distill.errors import ConfigError
from cfg_distill.generators import templates
from cfg_distill.generators.templates import rendered

MESSAGES = [{"role": "user", "content": "w1"}]


def text_of(template: str) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return rendered(tokenizer, MESSAGES, "Prompt 'w1'")


def test_a_template_writes_its_text_and_leaves_the_limits_as_they_were() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert text_of("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}") == "<user>w1"
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'x' * 9999999999 }}", "took more than 1 GiB"),
        ("{{ 'x' * 99999999999999999999 }}", "took more than 1 GiB"),
        ("{{ 'x' * 2000000 }}", "makes 2,000,000 characters, where 1,000,000 are allowed"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "raises a number to a power"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "calls itself without end"),
        ("{{ 1 / 0 }}", "the chat template fails: division by zero"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ raise_exception('no such words') }}", "no such words"),
        ("{% for %}", "the chat template fails: Expected"),
    ],
)
def test_a_template_beyond_its_limits(template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"Prompt 'w1': .*{said}"):
        text_of(template)


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"took more than 0\.2 seconds"):
        text_of("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    assert time.monotonic() - began < 60
    assert sum(1 for _ in range(10**6)) == 10**6  # nothing is raised later, in other code


def test_two_stars_in_text_are_no_power() -> None:
    assert text_of("**{{ messages[0].content }}**") == "**w1**"
