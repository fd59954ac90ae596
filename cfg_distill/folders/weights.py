"""Files of weights, opened or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError
from cfg_distill.folders.checksums import refuse_damaged


def open_weights(file: str | Path) -> Any:
    """A safetensors file, opened lazily: its names and shapes are read at once, values when asked.

    Returns:
        The library's ``safe_open``, for torch.

    Raises:
        ConfigError: the file is not the one that was written, by its checksum; it cannot be read as safetensors.
    """
    from safetensors import SafetensorError, safe_open  # names of folders are asked for without it

    refuse_damaged(file)
    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"`{file}` cannot be read as safetensors: {error}. It is cut short or damaged. Copy it again, or export the"
            " checkpoint again."
        ) from error
