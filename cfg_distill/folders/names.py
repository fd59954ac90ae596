"""Model folders: names of shipped and packaged ones, and checks of a folder that load no weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem, nearest
from cfg_distill.files import expanded, read_json
from cfg_distill.folders.gguf import cached_name, converted, problems_of_gguf
from cfg_distill.folders.hub import ask_hub, beside_it, problems_of_hub_name, similar
from cfg_distill.folders.packages import PACKAGED
from cfg_distill.folders.shards import problems_of_index

PACKAGE = Path(__file__).parent.parent
_OF_TUNES = ("base", "encoder", "figures", "rhythms", "judge", "listener")
SHIPPED = {name: PACKAGE / "tunes" / "weights" / name for name in _OF_TUNES}
KNOWN: dict[str, Collection[str]] = {"tunes": SHIPPED, "text": PACKAGED}
RECIPES = PACKAGE / "recipes"
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.safetensors.index.json")
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def from_hub(loader: Any, path: str, kind: str, subject: str = "Model", **settings: Any) -> Any:
    """Load something by a class of transformers from a model folder or hub name.

    Args:
        loader: the class, ``AutoConfig`` for one.
        path: the folder or hub name.
        kind: the kind of model that is expected there, for the message: ``a MusicGen``.
        subject: a noun for the path, for the message.
        settings: further arguments of ``from_pretrained``.

    Raises:
        ConfigError: transformers cannot load it.
    """
    try:
        found = resolve(path)
        ask_hub(found)
        # A model folder is data. Left open, transformers would ask on a terminal whether to run the folder's code.
        code = {"trust_remote_code": False} if loader.__name__.startswith("Auto") else {}
        return loader.from_pretrained(found, **code, **settings)
    except ConfigError:
        raise
    except Exception as error:  # any: the files are a stranger's, and transformers calls what they say
        if type(error).__name__ == "OutOfMemoryError":
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # A line that ends in a colon announces the cause, which is the next one.
        said = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        raise ConfigError(
            f"{subject} `{path}`: expected a model folder or a reachable hub name of {kind}, but transformers could not load"
            f" it: {said.rstrip('.:')}.{similar(path)} Without a network, name a folder that holds it."
        ) from error


def lacks_words(tokenizer: Any, vocabulary: int) -> bool:
    """Whether a tokenizer has few tokens but special ones: transformers makes such a one where the files are missing."""
    return 2 * len(tokenizer) < vocabulary


def source(path: str) -> Path | None:
    """The folder or file behind ``tunes:NAME``, ``text:NAME`` or a GGUF file; None for any other path.

    Raises:
        ConfigError: no such name, or its package is not installed.
    """
    prefix, colon, name = str(path).partition(":")
    if not colon or prefix not in KNOWN:
        file = expanded(path)
        return file if file.suffix == ".gguf" and file.is_file() else _converted_elsewhere(file)
    if name not in KNOWN[prefix]:
        known = [f"{prefix}:{each}" for each in KNOWN[prefix]]
        raise ConfigError(f"Model `{path}`: expected one of {known}, but got `{path}`.{nearest(str(path), known)}")
    if prefix == "tunes":
        return SHIPPED[name]
    try:
        return PACKAGED[name].path()
    except ConfigError as error:
        raise ConfigError(f"Model `{path}`: {error}") from error


def _converted_elsewhere(folder: Path) -> Path | None:
    """The packaged GGUF file behind a converted folder that is gone: an adapter may name its base by such a folder."""
    if folder.parent.name != "models" or folder.exists():
        return None
    files = [found for each in PACKAGED.values() if (found := each.find()) is not None and found.suffix == ".gguf"]
    return next((file for file in files if cached_name(file) == folder.name), None)


def resolve(path: str) -> str:
    """The folder behind ``tunes:base``, ``text:smollm2`` and the like; any other path or hub name unchanged.

    A GGUF file is converted once, and stands for the converted folder; see :func:`cfg_distill.folders.converted`.

    Raises:
        ConfigError: no such name, its package is not installed, or a GGUF file cannot be converted.
    """
    found = source(path)
    if found is None:
        return str(expanded(path)) if str(path).startswith("~") else str(path)
    return str(converted(found) if found.suffix == ".gguf" else found)


def find_file(path: str | Path) -> Path:
    """The file itself, or the one of this name shipped with the package, so that ``recipes/...`` works in any folder."""
    path = expanded(path)
    if not path.exists() and path.parts[:1] == ("recipes",):
        shipped = RECIPES.joinpath(*path.parts[1:])
        return shipped if shipped.exists() else path
    return path


def similar_file(path: str | Path) -> str:
    """`` Did you mean `x`?`` of the YAML file that lies where a missing one should, or is shipped there; empty without one."""
    wanted = Path(path)
    places = [expanded(wanted.parent), find_file(wanted.parent)]
    return beside_it(wanted, dict.fromkeys(file.name for place in places for file in sorted(place.glob("*.yaml"))))


def existing_file(path: str | Path, what: str) -> Path:
    """The file itself, or the shipped one of this name.

    Args:
        path: as the user wrote it.
        what: what was expected there, in words.

    Raises:
        ConfigError: there is none.
    """
    file = find_file(path)
    if file.is_dir():
        raise ConfigError(f"Expected {what}, but `{path}` is a folder. Name a file in it.")
    if not file.is_file():
        raise ConfigError(f"Expected {what}, but `{path}` does not exist.{similar_file(path) or ' Check the path.'}")
    return file


def is_adapter(path: str | Path) -> bool:
    """Whether a path is a folder with a LoRA adapter in peft's format."""
    return (expanded(path) / ADAPTER_CONFIG).is_file()


def adapter_config(path: str | Path) -> dict[str, Any]:
    """The ``adapter_config.json`` of an adapter folder.

    Raises:
        ConfigError: it is no JSON object, or names no base.
    """
    file = expanded(path) / ADAPTER_CONFIG
    config = read_json(file)
    if not isinstance(config.get("base_model_name_or_path") or None, str):
        raise ConfigError(
            f"`{file}`: expected the folder or hub name of the base under `base_model_name_or_path`, but it names none."
            " Write it there."
        )
    return config


def model_type_of(path: str | Path) -> str | None:
    """The ``model_type`` of a model folder, or of an adapter's base; empty where its config has none, None for a hub name."""
    base = base_of(path)
    file = (source(base) or expanded(base)) / "config.json"
    return str(read_json(file).get("model_type") or "") if file.is_file() else None


def base_of(path: str | Path) -> str:
    """The model behind a path: the base of an adapter folder, else the path itself.

    Raises:
        ConfigError: the folder's ``adapter_config.json`` names no base.
    """
    return adapter_config(path)["base_model_name_or_path"] if is_adapter(path) else str(path)


def whole_path(base: str) -> str:
    """A base by a name that holds in any working folder: a folder by its whole path, a hub name as it is."""
    folder = expanded(resolve(base))
    return str(folder.resolve()) if folder.is_dir() else base


def problems_of_folder(path: str) -> list[Problem]:
    """What is wrong with a model folder, found without loading it. A hub name (``owner/name``, no such folder) passes."""
    try:
        found = source(path)
    except ConfigError as error:
        return error.problems
    if found is not None and found.suffix == ".gguf":
        return problems_of_gguf(found)
    folder = found or expanded(path)
    if not folder.exists():
        if folder.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") > 1:
            text = f"expected a model folder, but `{path}` does not exist.{similar(str(path))} Check the path."
            return [Problem("", text)]
        return problems_of_hub_name(str(path))
    if is_adapter(path):
        return _problems_of_adapter(path, folder)
    if not (folder / "config.json").is_file():
        return [Problem("", f"expected a Hugging Face model folder, but `{path}` holds no config.json.")]
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        return [
            Problem(
                "",
                f"expected a model folder with weights (model.safetensors), but `{path}` holds none."
                " Export or copy the weights into it, or name another folder.",
            )
        ]
    return _problems_of_json(folder) or problems_of_index(folder)


def _problems_of_json(folder: Path) -> list[Problem]:
    """Which files of settings hold no keys and values: transformers would end in a traceback."""
    found: list[Problem] = []
    for file in map(folder.joinpath, _SETTINGS):
        if file.is_file():
            try:
                read_json(file)
            except ConfigError as error:
                found += error.problems
    return found


def _problems_of_adapter(path: str, folder: Path) -> list[Problem]:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        return [Problem("", f"expected {ADAPTER_WEIGHTS} in the adapter folder `{path}`, but it is not there.")]
    try:
        base = base_of(path)
    except ConfigError as error:
        return error.problems
    if is_adapter(base):
        text = f"the base of the adapter `{path}` is an adapter itself, `{base}`. Export one of them merged."
        return [Problem("", text)]
    named = f"This base is named by `{path}/{ADAPTER_CONFIG}`: if it lies elsewhere now, change the name there."
    return [replace(problem, text=f"{problem.text} {named}") for problem in problems_of_folder(base)]
