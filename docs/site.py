"""A hook of mkdocs: a link out of the pages leads to no page of the site, so its text stays and the link goes."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page without links to files of the repository.

    Example:
        >>> on_page_markdown("see [contributing](../CONTRIBUTING.md) and [keys](keys.md)")
        'see contributing (`CONTRIBUTING.md`) and [keys](keys.md)'
    """
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)
