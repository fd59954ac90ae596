"""Hub names: whether the hub answers is asked once, said first, and waited for ten seconds at most. Imports no torch."""

from __future__ import annotations

import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from cfg_distill.errors import Problem, closest
from cfg_distill.files import expanded

SECONDS = 10.0
"""The longest wait for the hub's first answer."""
_FILES = ("config.json", "adapter_config.json")


def ask_hub(name: str) -> None:
    """Ask the hub for a name, once in a process, before a library does: it would try for minutes, and say nothing.

    A hub that does not answer is not asked again: the libraries then look into their cache only.

    Args:
        name: a folder, for which nothing is asked, or a hub name.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or expanded(name).exists() or not _may_be_hub_name(name):
        return
    if not in_cache(name):
        _say_what_is_asked(constants.ENDPOINT, name)
    if problem := silence(constants.ENDPOINT, name, SECONDS):
        print(
            f"{constants.ENDPOINT} does not answer ({problem}). Only models that it sent before can be used.",
            file=sys.stderr,
        )
        constants.HF_HUB_OFFLINE = True


def problems_of_hub_name(name: str) -> list[Problem]:
    """Why a path that is no folder can be no hub name either, as far as that is known without a download."""
    from huggingface_hub import constants

    if not _may_be_hub_name(name):
        return [Problem("", f"expected a model folder, but `{name}` does not exist.{similar(name)} Check the path.")]
    ask_hub(name)
    if not constants.HF_HUB_OFFLINE or in_cache(name):
        return []
    return [
        Problem(
            "",
            f"expected a model folder, or the name of a model on the hub, but there is no folder `{name}`, and the hub cannot"
            f" be asked without a network.{similar(name)} Check the path, or go on with a network.",
        )
    ]


def in_cache(name: str) -> bool:
    """Whether the hub's cache on this machine holds a model."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in _FILES)


def similar(path: str) -> str:
    """`` Did you mean `x`?`` of the folder beside a path that does not exist whose name is nearest; empty without one."""
    wanted = Path(path)
    try:
        if not wanted.name or expanded(wanted).exists():
            return ""
        beside = [each.name for each in expanded(wanted.parent).iterdir() if each.is_dir()]
    except OSError:
        return ""
    return beside_it(wanted, [name for name in beside if not name.startswith(".")])


def beside_it(missing: Path, names: Iterable[str]) -> str:
    """`` Did you mean `x`?`` of the name beside a missing path that is nearest to its own; empty when none is near."""
    # Neither the folder nor the suffix, which they share: these would make any two alike.
    known = {name.removesuffix(".yaml"): name for name in names}
    found = closest(missing.name.removesuffix(".yaml"), known)
    return f" Did you mean `{missing.with_name(known[found])}`?" if found else ""


def _may_be_hub_name(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@cache
def _say_what_is_asked(endpoint: str, name: str) -> None:
    """Once in a process for a name."""
    text = f"There is no folder `{name}`: asking {endpoint} for it ({SECONDS:g} s at most)."
    print(text, file=sys.stderr, flush=True)


@cache
def silence(endpoint: str, name: str, seconds: float) -> str:
    """Why the hub does not answer; empty when it does, whatever it answers."""
    answers: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(f"{endpoint}/{name}/resolve/main/{_FILES[0]}", method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append("")
        except urllib.error.HTTPError:
            answers.append("")
        except (OSError, ValueError) as error:
            answers.append(str(error.reason if isinstance(error, urllib.error.URLError) else error))

    # In a thread: a time limit of a socket covers neither the look-up of the name nor several addresses.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no answer in {seconds:g} s"
