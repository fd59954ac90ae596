"""Chat templates within limits. A template is a program of whoever made the model: the sandbox of transformers keeps it from
files and modules, and this module from endless loops and from all of the memory."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError

SECONDS = 10.0
"""The longest time for one message. The longest templates of shipped models take a few milliseconds."""
MEMORY = 2**30
"""The most memory for one message, in bytes, beyond what the process has; limited on Linux alone."""
MOST_CHARACTERS = 1_000_000
"""The longest text of one message."""

DAY = datetime(2024, 7, 26)
"""What a template that writes today's date gets, the default of Llama's: the same seed draws the same samples on any day."""


class _TooLong(BaseException):
    """Raised in the thread of a template. No part of a template catches it."""


def rendered(tokenizer: Any, messages: list[dict[str, str]], subject: str, ask: bool = True) -> str:
    """Messages as text, by the chat template of a tokenizer.

    Args:
        tokenizer: of transformers.
        messages: role and content of each.
        subject: for the message: ``Prompt 'a waltz'``.
        ask: end with what begins the answer; off where the messages hold its beginning.

    Raises:
        ConfigError: the template refuses the messages, cannot be read, or goes beyond the limits of this module.
    """
    try:
        _refuse_powers(tokenizer.chat_template)
        # In this order: what stops the template must not stop the other's end.
        with _one_day(tokenizer.chat_template), _memory_limited(), _time_limited():
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except _TooLong as error:
        raise _beyond(subject, f"took more than {SECONDS:g} seconds") from error
    except (MemoryError, OverflowError) as error:
        raise _beyond(subject, f"took more than {MEMORY / 2**30:g} GiB of memory") from error
    except RecursionError as error:
        raise _beyond(subject, "calls itself without end") from error
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
    ) as error:
        raise _failing(subject, error) from error
    except Exception as error:  # jinja2's TemplateError; its package is no dependency of every install
        if type(error).__module__.partition(".")[0] != "jinja2":
            raise
        if type(error).__name__ == "TemplateError":  # the template's own words, by `raise_exception`
            raise ConfigError(f"{subject}: {error}") from error
        raise _failing(subject, error) from error
    if len(text) > MOST_CHARACTERS:
        raise _beyond(subject, f"makes {len(text):,} characters, where {MOST_CHARACTERS:,} are allowed")
    return text


@contextlib.contextmanager
def _one_day(template: Any) -> Iterator[None]:
    """A template that asks for today's date gets :data:`DAY`. transformers answers it, and takes no function in its place."""
    from transformers.utils import chat_template_utils

    own = vars(chat_template_utils)
    before = own.get("datetime")
    if "strftime_now" not in str(template) or before is None:
        yield
        return
    own["datetime"] = _Clock
    try:
        yield
    finally:
        own["datetime"] = before


class _Clock:
    now = staticmethod(lambda: DAY)


def _beyond(subject: str, what: str) -> ConfigError:
    return ConfigError(
        f"{subject}: the chat template {what}. It is a program in the model's folder. Use another model, or set `chat_template`"
        " to false."
    )


def _failing(subject: str, error: Exception) -> ConfigError:
    said = str(error).rstrip(".")
    return ConfigError(f"{subject}: the chat template fails: {said}. Mend it, or set `chat_template` to false.")


def _refuse_powers(template: Any) -> None:
    """A power of large numbers is one operation, which no limit of time can stop."""
    import jinja2

    texts = template.values() if isinstance(template, dict) else [template]
    for text in texts:
        if "**" not in str(text):
            continue
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(str(text))
        if next(parsed.find_all(jinja2.nodes.Pow), None) is not None:
            raise ValueError("it raises a number to a power, which templates may not")


@contextlib.contextmanager
def _time_limited() -> Iterator[None]:
    """Stop this thread's Python code when it takes too long."""
    lock, state = threading.Lock(), {"running": True, "stopped": False}
    thread = ctypes.c_ulong(threading.get_ident())

    def stop() -> None:
        with lock:
            if state["running"]:
                state["stopped"] = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TooLong))

    timer = threading.Timer(SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            state["running"] = False
        while state["stopped"]:  # the exception is under way: let it come here, not in what follows
            state["stopped"] = False
            time.sleep(0)


@contextlib.contextmanager
def _memory_limited() -> Iterator[None]:
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # no Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + MEMORY
    if soft not in (resource.RLIM_INFINITY, -1) and soft < wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
