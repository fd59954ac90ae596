"""How samples are shown and written: as plain text and WAV, or by a class that the model's own folder names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cfg_distill.audio import Waveform, write_audio
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import read_yaml
from cfg_distill.folders import find_file
from cfg_distill.folders.profile import Profile, is_trusted, profile_of

_OLDER = "cfg_distill.tunes.renderer.profile_of_older_folder"
"""Finds the profile of a folder that version 0.1 wrote, which holds none. To go after the next release."""


class Renderer:
    """Shows and writes samples: texts as they are, waveforms as WAV files. Derive from it for anything else.

    ``cfg_distill.json`` in a model folder names the class; it is made without arguments.
    """

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        """Why there can be no samples of these prompts; asked before the model is loaded."""
        return []

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        """Lines for the user about prompts that can be sampled: a word that means nothing to the model, for one."""
        return []

    def text(self, sample: Any, prompt: str) -> str:
        """The sample as it is printed."""
        if not isinstance(sample, Waveform):
            return str(sample)
        channels = {1: "mono", 2: "stereo"}.get(len(sample.samples), f"{len(sample.samples)} channels")
        peak = f"{20 * math.log10(sample.peak):.1f} dBFS" if sample.peak else "silence"
        return f"{sample.seconds:.2f} s, {sample.rate} Hz, {channels}, peak {peak}"

    def is_empty(self, sample: Any) -> bool:
        """Whether a sample holds nothing to read or hear: see :func:`cfg_distill.embedders.is_empty`."""
        from cfg_distill.metrics import is_empty  # it imports transformers, for which not every command must wait

        return is_empty(sample)

    def write(self, sample: Any, prompt: str, folder: Path, stem: str) -> str:
        """Write the sample as one or several files, named ``stem`` and a suffix.

        Args:
            sample: what the generator's ``decode`` returns.
            prompt: its prompt.
            folder: it exists.
            stem: the file name without a suffix.

        Returns:
            A line for the user where the file differs from the sample; else empty.
        """
        if not isinstance(sample, Waveform):
            (folder / f"{stem}.txt").write_text(str(sample), encoding="utf-8")
            return ""
        gain = write_audio(folder / f"{stem}.wav", sample)
        return f"{stem}.wav: turned down by {-gain:.1f} dB, so that it does not clip." if gain else ""


def renderer_of(path: str, trust: Sequence[str] = ()) -> tuple[Renderer, list[Problem]]:
    """The renderer that a model's profile names, and why it is not used.

    Args:
        path: a model folder, adapter folder or hub name.
        trust: modules, beside this package, that the folder may name.

    Returns:
        The renderer, and nothing; or the plain one, and a remark, where the profile names a class that is not trusted.

    Raises:
        ConfigError: the profile cannot be read; a trusted renderer cannot be imported, or is none.
    """
    name = model_profile(path).renderer
    if not name:
        return Renderer(), []
    if not is_trusted(name, trust):
        return Renderer(), [_not_trusted(path, "renderer", name, "Its samples are written as they are")]
    try:
        found = _named(name)
    except ImportError as error:
        raise ConfigError(f"Model `{path}`: its renderer `{name}` cannot be imported: {error}.") from error
    if not isinstance(found, type) or not issubclass(found, Renderer):
        raise ConfigError(f"Model `{path}`: expected a renderer, but there is none under the name `{name}`.")
    try:
        return found(), []
    except TypeError as error:
        raise ConfigError(
            f"Model `{path}`: expected a renderer that takes no arguments, but `{name}`: {error}."
        ) from error


def metrics_of_profiles(paths: Sequence[str], trust: Sequence[str] = ()) -> tuple[dict[str, Any], list[Problem]]:
    """The metrics that the profiles of all models name, and why they are not used.

    Returns:
        The metrics, name -> class_path and init_args; none where the models differ, one names none, or one names a class
        that is not trusted: then with a remark.

    Raises:
        ConfigError: a profile, or the file that it names, cannot be read.
    """
    named = [model_profile(path).metrics for path in paths]
    if not named or any(metrics != named[0] for metrics in named):
        return {}, []
    specs = read_yaml(find_file(named[0])) if isinstance(named[0], str) and named[0] else named[0]
    wrong = [name for name in class_paths(specs) if not is_trusted(name, trust)]
    if wrong:
        return {}, [_not_trusted(paths[0], "metric", wrong[0], "It is measured as any other model")]
    return dict(specs or {}), []


def class_paths(specs: Any) -> list[str]:
    """All texts in the metrics of a profile from which a module could be imported: those with a full stop and no slash.

    Every one counts, whatever its key: jsonargparse also imports a class path that stands in place of a mapping. And whatever
    its form: Python imports the module of ``evil.No name!``, too. So a profile must write a file with a slash:
    ``./music.yaml``.
    """
    if isinstance(specs, Mapping):
        return [name for value in specs.values() for name in class_paths(value)]
    if isinstance(specs, list):
        return [name for value in specs for name in class_paths(value)]
    return [specs] if isinstance(specs, str) and "." in specs and "/" not in specs else []


def model_profile(path: str) -> Profile:
    """The profile of a model: its own, or the profile of a folder of version 0.1; else an empty one.

    Raises:
        ConfigError: the profile cannot be read.
    """
    return profile_of(path) or _named(_OLDER)(path) or Profile()


def _not_trusted(path: str, kind: str, name: str, outcome: str) -> Problem:
    return Problem(
        "trust",
        f"model `{path}` names the {kind} `{name}`, and a model folder is data: it may not decide what is imported."
        f" {outcome}. If you trust the module, name it here: `{name.rpartition('.')[0]}`.",
    )


def _named(name: str) -> Any:
    """The object that a dotted name stands for; None where there is none.

    Raises:
        ImportError: its module is there, and fails on an import of its own.
    """
    module, _, attribute = name.rpartition(".")
    try:
        return vars(import_module(module)).get(attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        return None
