"""What sampling and the losses know of a model: a predictor predicts tokens. Shapes: N rows, K codebooks, T positions.

A *predictor* is whatever predicts tokens: a generator, a generator under guidance, two models mixed. So a new way to mix
models is a new predictor and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from cfg_distill.generators.predictions import Predictions
from cfg_distill.guidance import Guidance
from cfg_distill.prompt import PromptLike

if TYPE_CHECKING:
    from cfg_distill.generators.base import Generator


class Predictor(Protocol):
    """Predictions of tokens, at once or step by step.

    Tokens live in the layout of :mod:`cfg_distill.generators.delay`: at position t, codebook k holds frame ``t - delays[k]``.

    Most models predict all codebooks of a position at once. A model with a depth decoder predicts codebook 0, and each further
    codebook from the tokens of the position so far::

        prefill, step        the first codebooks of the next position, drawn independently of each other
        deepen               the codebooks after those that are drawn, until there are K
    """

    @property
    def delays(self) -> tuple[int, ...]:
        """Of each codebook, in positions."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a sample."""

    @property
    def end_codebooks(self) -> int:
        """How many codebooks, from the first, draw the end together."""

    @property
    def pad_token(self) -> int:
        """In cells that do not exist."""

    @property
    def parts(self) -> tuple[Generator, ...]:
        """The generators that predict; the first one decodes."""

    @property
    def passes(self) -> int:
        """Forward passes per position."""

    def prefill(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[Any, Predictions]:
        """Read the prompts, each once, and begin ``repeats`` continuations of each.

        Returns the state of ``N = len(prompts) * repeats`` rows and the predictions of their first position (T = 1).
        """

    def step(self, state: Any, tokens_NK: Tensor) -> tuple[Any, Predictions]:
        """Append one position of tokens; returns the state and the predictions of the next position (T = 1).

        The state that was passed in is used up.
        """

    def deepen(self, state: Any, tokens_NJ: Tensor) -> tuple[Any, Predictions]:
        """Predictions of further codebooks at the next position (T = 1), given the tokens of its first J codebooks.

        It is asked only where :meth:`prefill` and :meth:`step` predict less than K codebooks. The state that was passed in is
        used up.
        """

    def negatives(self, prompts: Sequence[PromptLike | None], guidance: Guidance) -> list[PromptLike | None]:
        """The prompts of the negative branch under guidance: one for all rows, or one per prompt."""

    def keep(self, state: Any, rows_M: Tensor) -> Any:
        """The state of some rows, by their indices: the others are finished. The state that was passed in is used up."""

    def predictions(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        """Predictions at every generated position at once, row n belonging to prompt n // (N / B).

        Values at masked cells are arbitrary.
        """


Stream = Predictor
"""The name of :class:`Predictor` in version 0.1. To go after the next release."""


class AcceptsScored:
    """Predictors of version 0.1 call :meth:`Predictor.predictions` by the name ``scored``. To go after the next release.

    A class that defines ``scored`` gets it as ``predictions``; a class that defines ``predictions`` can be asked by both
    names, and ``super().scored(...)`` asks its own.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = vars(cls)
        if "predictions" in own:
            cls.scored = _by_the_old_name(own["predictions"])  # type: ignore[attr-defined]
        elif "scored" in own:
            name = f"{cls.__module__}.{cls.__qualname__}"
            warnings.warn(f"The method `scored` of `{name}` is `predictions` now.", DeprecationWarning, stacklevel=2)
            cls.predictions = own["scored"]  # type: ignore[attr-defined]


def _by_the_old_name(predictions: Callable[..., Predictions]) -> Callable[..., Predictions]:
    def scored(self: Any, *arguments: Any, **named: Any) -> Predictions:
        warnings.warn("The method `scored` is `predictions` now.", DeprecationWarning, stacklevel=2)
        return predictions(self, *arguments, **named)

    return scored
