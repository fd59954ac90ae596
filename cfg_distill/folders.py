"""Model folders: the names of the shipped ones, and what can be said of a folder without loading its weights."""

from __future__ import annotations

from pathlib import Path

from cfg_distill.errors import ConfigError

SHIPPED = {name: Path(__file__).parent / "tunes" / "weights" / name for name in ("base", "encoder", "judge")}
RECIPES = Path(__file__).parent / "recipes"
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def resolve(path: str) -> str:
    """The folder behind ``tunes:base``, ``tunes:encoder`` or ``tunes:judge``; any other path or hub name unchanged.

    Raises:
        ConfigError: for a ``tunes:`` name that is not shipped.
    """
    prefix, _, name = str(path).partition(":")
    if prefix != "tunes":
        return str(path)
    if name not in SHIPPED:
        raise ConfigError(
            f"Model `{path}`: expected one of {[f'tunes:{known}' for known in SHIPPED]}, but got `{path}`."
        )
    return str(SHIPPED[name])


def find_file(path: str | Path) -> Path:
    """The file itself, or the one of this name shipped with the package, so that ``recipes/...`` works in any folder."""
    path = Path(path).expanduser()
    if not path.exists() and path.parts[:1] == ("recipes",):
        shipped = RECIPES.joinpath(*path.parts[1:])
        return shipped if shipped.exists() else path
    return path


def problems_of_folder(key: str, path: str) -> list[str]:
    """What is wrong with a model folder, without loading it. A hub name (``owner/name``, no such folder) passes."""
    try:
        folder = Path(resolve(path))
    except ConfigError as error:
        return [f"Key `{key}`: {problem}" for problem in error.problems]
    if not folder.exists():
        if folder.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") > 1:
            return [f"Key `{key}`: expected a model folder, but `{path}` does not exist. Check the path."]
        return []
    if not (folder / "config.json").is_file():
        return [f"Key `{key}`: expected a Hugging Face model folder, but `{path}` holds no config.json."]
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        return [
            f"Key `{key}`: expected a model folder with weights (model.safetensors), but `{path}` holds none."
            " Export or copy the weights into it, or name another folder."
        ]
    return []
