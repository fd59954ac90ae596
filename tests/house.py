"""The rooms of the package, and the arrows between them: read from the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from fenced import ROOT

PACKAGE = ROOT / "cfg_distill"


def sources() -> Iterator[Path]:
    yield from PACKAGE.rglob("*.py")
    yield from (PACKAGE / "callbacks").glob("*.py")  # a link, which rglob does not follow


def rooms() -> set[str]:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return found - {"__init__"}


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second, imports inside functions included."""
    known, found = rooms(), set()
    for file in sources():
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            others = {name.split(".")[1] for name in names if name.startswith("cfg_distill.")} & known
            found |= {(room, other) for other in others if room != "__init__" and other != room}
    return found
