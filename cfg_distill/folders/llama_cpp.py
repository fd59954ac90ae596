"""llama.cpp: its converters from model folders to GGUF files, and the commands of its server. It is no dependency."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import expanded, read_json, write_json
from cfg_distill.folders.adapters import Adapter
from cfg_distill.folders.checksums import sha256
from cfg_distill.folders.names import resolve
from cfg_distill.folders.profile import PROFILE

WHOLE, ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
FOLDER = "LLAMA_CPP"
"""The variable of the environment that names llama.cpp's folder."""
GGUF_KEY = "gguf_sha256"
"""In ``cfg_distill.json`` of a folder: of the file that was made of it, which another export may replace."""
NEAREST = 3
"""So many of the names that the converter knows are named where it does not know one."""
SECONDS = 120
"""The longest time for the list of architectures: the converter imports torch first."""


class Conversion:
    """One folder to be converted, beside itself: ``students/quality`` becomes ``students/quality.gguf``.

    Args:
        out: the folder, which need not be there yet.
        base: the folder, hub name or shipped name of the model that it has the architecture of.
        adapter: whether the folder holds an adapter of the base.
    """

    def __init__(self, out: Path, base: str, adapter: bool) -> None:
        self.out = out
        self.base = base
        self.adapter = adapter
        self.file = out.with_name(f"{out.name}.gguf")

    @cached_property
    def architecture(self) -> str:
        """The class of the model, as its config names it; empty where it names none.

        Raises:
            ConfigError: there is no config.
        """
        from transformers import PreTrainedConfig

        try:
            config = PreTrainedConfig.get_config_dict(resolve(self.base))[0]
        except (OSError, ValueError) as error:
            raise ConfigError(f"Model `{self.base}`: expected a config.json, but it cannot be read: {error}") from error
        return str((config.get("architectures") or [""])[0])

    @cached_property
    def converter(self) -> Path | None:
        """llama.cpp's converter of whole models; that of adapters lies beside it. None where neither is at hand."""
        named = os.environ.get(FOLDER)
        if named:
            file = expanded(named) / WHOLE
            return file if file.is_file() else None
        found = shutil.which(WHOLE)
        return Path(found).resolve() if found else None

    def problems(self, overwrite: bool, difference: Adapter | None = None) -> list[Problem]:
        """Why the folder cannot be converted, found before it is written.

        Args:
            overwrite: whether the user allowed to replace the GGUF file.
            difference: the adapter that the folder will hold, where its layers may differ in rank and scale.
        """
        found = []
        # llama.cpp multiplies the change of a layer by alpha over the rank of this layer, with one alpha for the file.
        if len(alphas := {factors.rank * factors.scale for factors in (difference or {}).values()}) > 1:
            text = (
                f"expected one alpha for all layers, since a GGUF file holds one, but the difference has"
                f" {', '.join(f'{alpha:g}' for alpha in sorted(alphas))}. Train both adapters on the same layers, each of"
                " one rank, or leave this out."
            )
            found.append(Problem("gguf", text))
        if os.environ.get(FOLDER) and self.converter is None:
            text = f"expected llama.cpp's folder in {FOLDER}, but `{os.environ[FOLDER]}` holds no {WHOLE}. Correct it."
            found.append(Problem("gguf", text))
        if self.file.exists() and not overwrite:
            found.append(Problem("gguf", f"`{self.file}` exists. Name another `@.out`, or pass `@.overwrite`."))
        elif self.file.exists() and self._written() != sha256(self.file):
            text = f"expected room for `{self.file}`, but that file was not written by an export into `{self.out}`."
            found.append(Problem("gguf", f"{text} Move it away, or name another `@.out`."))
        try:
            if known := self._unless_known():
                text = (
                    f"expected an architecture that llama.cpp's converter knows, but `{self.base}` is a"
                    f" {self.architecture or 'model without a named one'}. {known} Leave this out."
                )
                found.append(Problem("gguf", text))
        except ConfigError as error:
            found += error.under("gguf")
        return found

    def run(self) -> str:
        """Convert the folder where the converter is at hand; returns what was done, and the commands that remain.

        Raises:
            ConfigError: the converter failed.
        """
        before, convert, after = self.commands()
        if self.converter is None:
            return _listed(
                f"llama.cpp's converter was not found: neither in the folder that {FOLDER} names, nor on the PATH. Run:",
                [before, convert, after] if self.adapter else [convert, before, after],
            )
        staged = self.file.with_name(f".{self.file.name}.partial")
        words = [str(staged) if word == str(self.file) else word for word in convert]
        try:
            _output(words)
            staged.replace(self.file)
            self._write_down()
        except ConfigError as error:
            (problem,) = error.problems
            raise ConfigError(Problem("gguf", f"`{self.out}` was written, but not converted: {problem}")) from error
        finally:
            staged.unlink(missing_ok=True)
        return _listed(f"Wrote {self.file}. What remains:", [before, after])

    def _written(self) -> str:
        """The digest of the GGUF file that the last export into the folder wrote; empty for none."""
        profile = self.out / PROFILE
        return str(read_json(profile).get(GGUF_KEY, "")) if profile.is_file() else ""

    def _write_down(self) -> None:
        profile = self.out / PROFILE
        known = read_json(profile) if profile.is_file() else {}
        write_json(profile, known | {GGUF_KEY: sha256(self.file)})

    def commands(self) -> tuple[list[str], list[str], list[str]]:
        """The base as GGUF (of a whole model: its quantised form), the folder as GGUF, and the server."""
        folder = self.converter.parent if self.converter is not None else Path()
        python = [sys.executable if self.converter is not None else "python"]
        file, exact = str(self.file), ["--outtype", "f32"]
        if not self.adapter:
            convert = [*python, str(folder / WHOLE), str(self.out), "--outfile", file, *exact]
            small = str(self.out.with_name(f"{self.out.name}-q8_0.gguf"))
            return ["llama-quantize", file, small, "q8_0"], convert, ["llama-server", "-m", file]
        base, of_base = resolve(self.base), str(self.out.with_name("base.gguf"))
        is_local = Path(base).is_dir()
        first = [*python, str(folder / WHOLE), *([] if is_local else ["--remote"]), base, "--outfile", of_base, *exact]
        named = ["--base" if is_local else "--base-model-id", base]
        convert = [*python, str(folder / ADAPTER), str(self.out), *named, "--outfile", file, *exact]
        return first, convert, ["llama-server", "-m", of_base, "--lora", file]

    def _unless_known(self) -> str:
        """What the converter knows in place of this architecture; empty where it knows this one, or cannot say.

        Raises:
            ConfigError: it cannot run.
        """
        if self.converter is None:
            # Without the converter, what it surely does not know: models of sound.
            causal = self.architecture.endswith(("ForCausalLM", "LMHeadModel"))
            return "" if causal else "It knows causal language models."
        lists = [sys.executable, str(self.converter), "--print-supported-models"]
        known = re.findall(r"^\W*(?:\w+:)*\s*-\s+(\w+)\s*$", _output(lists), re.MULTILINE)
        if not known or self.architecture in known:
            return ""
        near = difflib.get_close_matches(self.architecture, sorted(set(known)), NEAREST, cutoff=0)
        return f"It knows {len(set(known))}, the nearest {', '.join(near)}; `{shlex.join(lists)}` lists all."


def _output(words: list[str]) -> str:
    """What a command of llama.cpp says.

    Raises:
        ConfigError: it failed; its last line says why.
    """
    limit = None if "--outfile" in words else SECONDS
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"llama.cpp's {Path(words[1]).name} took more than {limit} s. Try it by hand.") from error
    said = f"{done.stdout}\n{done.stderr}"
    if done.returncode:
        last = next(
            (line.strip() for line in reversed(said.splitlines()) if line.strip()), f"exit code {done.returncode}"
        )
        raise ConfigError(f"llama.cpp's {Path(words[1]).name} failed: {last} Its requirements may be missing.")
    return said


def _listed(title: str, commands: list[list[str]]) -> str:
    return "\n".join([title, *(f"  {shlex.join(words)}" for words in commands)])
