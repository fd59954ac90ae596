"""A GGUF file as a plain Hugging Face folder, converted once. Importing this module imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import make_readable, refusal
from cfg_distill.folders.cache import VARIABLE, cache_folder, locked
from cfg_distill.folders.checksums import sha256

REVISION = 2
"""Of what :func:`_convert` writes: a new one makes every file anew."""


def problems_of_gguf(file: Path) -> list[Problem]:
    """What is wrong with a GGUF file as far as its first bytes tell, and which libraries are missing to convert it."""
    with file.open("rb") as stream:
        if (magic := stream.read(4)) != b"GGUF":
            text = f"Model `{file}`: expected a GGUF file, but it begins with {magic!r}. Download it again."
            return [Problem("", text)]
    missing = [library for library in ("gguf", "accelerate") if find_spec(library) is None]
    if not missing:
        return []
    return [
        Problem(
            "",
            f"Model `{file}`: expected the libraries gguf and accelerate to convert it, but {' and '.join(missing)} cannot be"
            ' imported. Install them: pip install ".[text]"',
        )
    ]


def converted(file: Path) -> Path:
    """The folder of safetensors (float32), tokenizer and chat template made from a GGUF file; made when it is not there.

    The folder lies in :func:`~cfg_distill.folders.cache.cache_folder` under a name with a digest of the file, appears whole
    or not at all, and of several processes one makes it. A line on stderr says what happens.

    Raises:
        ConfigError: the libraries are missing, transformers cannot read the file, or the cache cannot be written.
    """
    folder = cache_folder() / "models" / cached_name(file)
    if folder.is_dir():
        return folder
    if problems := problems_of_gguf(file):
        raise ConfigError(problems)
    with _writing(folder.parent), locked(folder.parent) as alone:
        if not folder.is_dir():  # another process may have made it while this one waited
            _say(f"Converting {file.name} to safetensors, once (about {_seconds(file)} s on one core) ...")
            began = time.monotonic()
            # Under the lock, what lies there is of a process that was killed.
            staged = folder.with_name(f".{folder.name}.partial" if alone else f".{folder.name}.{os.getpid()}")
            shutil.rmtree(staged, ignore_errors=True)
            try:
                _convert(file, staged)
                make_readable(staged)
                staged.replace(folder)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
            _say(f"Converted in {time.monotonic() - began:.0f} s: {folder} (delete it at will).")
    return folder


def cached_name(file: Path) -> str:
    """The name of the folder that a file is converted to: the same in every cache."""
    return f"{file.stem}-{_digest(file)}"


def _digest(file: Path) -> str:
    """Of all that it holds: two files may differ in one layer alone."""
    return hashlib.sha256(f"{REVISION} {sha256(file)}".encode()).hexdigest()[:12]


def _seconds(file: Path) -> int:
    """A guess: 20 s for 100 MB, of which 10 are the vocabulary, whatever the size."""
    return round(10 + file.stat().st_size / 10e6)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _explained(file):
        # Without its own code, which another file of its folder may name.
        settings: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **settings)
        settings |= {"dtype": torch.float32, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, **settings)
        model, report = loaded
        _refuse_another_model(file, model, report)
        # The weights are plain floats now; the marks of the file they came from would refuse save_pretrained.
        for holder, mark in (
            (model, "hf_quantizer"),
            (model, "quantization_method"),
            (model.config, "quantization_config"),
        ):
            vars(holder).pop(mark, None)
        model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """The system's refusals to write into the cache, as a message."""
    try:
        yield
    except Exception as error:
        if not (number := refusal(error)):
            raise
        text = f"Folder `{folder}`: expected a cache for what is converted, but it cannot be written: {os.strerror(number)}."
        raise ConfigError(f"{text} Make room, or name another folder in {VARIABLE}.") from error


def _refuse_another_model(file: Path, model: Any, report: Mapping[str, Any]) -> None:
    """Refuse a file of which transformers makes another model: it draws what is missing, and leaves out what it does not know.

    Raises:
        ValueError: what is missing or left out.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    names = [tensor.name for tensor in reader.tensors]
    found = [f"it lacks {each}" for each in sorted(report["missing_keys"])]
    found += [f"transformers takes no {name}" for name in names if name.startswith(("rope_freqs", "rope_factors"))]
    biases = [name for name in names if name.endswith(".bias")]
    if len(biases) > sum(name.endswith(".bias") for name, _ in model.named_parameters()):
        found.append(f"transformers takes no {biases[0]}")
    for key, field in reader.fields.items():
        scaled = key.endswith(".rope.scaling.type") and field.contents() not in ("none", "")
        if scaled and (model.config.to_dict().get("rope_parameters") or {}).get("rope_type", "default") == "default":
            found.append(f"transformers ignores {key} = {field.contents()}")
    if found:
        raise ValueError(f"{'; '.join(found[:4])}.")


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Report the errors of transformers and gguf on an unreadable file as a problem of the user's."""
    try:
        yield
    except (ValueError, KeyError, IndexError, NotImplementedError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"Model `{file}`: expected a GGUF file of a causal language model, of an architecture and a quantisation that"
            f" transformers reads (F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K), but: {reason} Use another file of the"
            " model, or its Hugging Face folder."
        ) from error
