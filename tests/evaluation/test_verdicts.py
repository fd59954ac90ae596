"""Verdicts of a ladder on metrics that have a value on some prompts alone."""

from __future__ import annotations

import pytest

from cfg_distill.evaluation.ladder import Rung, samples_of
from cfg_distill.evaluation.verdicts import Validation, validate
from cfg_distill.metrics import TextMetric

PROMPTS = [f"prompt {n}" for n in range(12)]


class Quality(TextMetric):
    """The number of words; NaN for texts that begin with a question mark."""

    axis = "quality"

    def score_group(self, texts: list[str]) -> float:
        return float("nan") if texts[0].startswith("?") else float(len(texts[0].split()))


class Guard(Quality):
    """The same as a guard."""

    axis = "guard"
    higher_is_better = True


def climbed(known: int) -> Validation:
    """Three words per text against one, on so many prompts with a value."""

    def rung(name: str, kind: str, words: str) -> Rung:
        groups = [[words if place < known else f"? {words}"] * 2 for place in range(len(PROMPTS))]
        return Rung(name, kind, samples_of(PROMPTS, groups))  # type: ignore[arg-type]

    return validate({"q": Quality(), "g": Guard()}, [rung("base", "base", "a b c"), rung("empty", "degenerate", "a")])


@pytest.mark.parametrize(
    ("known", "outcome"), [(0, "unclear"), (1, "unclear"), (7, "unclear"), (8, "holds"), (12, "holds")]
)
def test_few_prompts_with_a_value_are_unclear(known: int, outcome: str) -> None:
    found = climbed(known)
    (verdict,) = found.verdicts
    assert (verdict.outcome, verdict.prompts, verdict.difference is None) == (outcome, known, known == 0)
    assert found.seen["empty"] == (["q", "g"] if outcome == "holds" else [])
    assert found.holds == (outcome == "holds")
    assert found.as_json()["verdicts"][0]["prompts"] == known
