"""The one exception for a user's mistake: the command line prints it without a traceback and exits with code 2."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(Exception):
    """One or several problems of what the user gave.

    Each problem is one sentence that names the key, what was expected, what was found and what to do.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
