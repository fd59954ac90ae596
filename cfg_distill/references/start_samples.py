"""What the start model writes for the same prompt. Shapes: B prompts, S samples of each, R = B S, D embedding width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.errors import ConfigError, Context, Problem, problems_of, problems_of_counts
from cfg_distill.generators import Generator, Guidance, PromptLike, device
from cfg_distill.generators.frozen import Frozen
from cfg_distill.references.base import Reference, problems_of_length
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.start import StartModel


class StartSamples(Reference):
    """Samples of the frozen start model for each prompt: what the student was before it was trained.

    Samples of a prompt are drawn when a batch first has the prompt, and their vectors are kept. They depend on the prompt
    alone, not on batches, processes or interruptions. In a fit the start model is the fit's own, sampled as the fit samples. An
    evaluation has none, so name one there.

    Args:
        samples: S, of each prompt.
        guidance: draw them under guidance; null for none.
        generator: the start model, outside of a fit.
        tokens: the longest sample of ``generator``, in tokens or frames; null for 80. In a fit they are as long as the fit's.
    """

    shared = False

    def __init__(
        self,
        samples: int = 16,
        guidance: Guidance | None = None,
        generator: Generator | None = None,
        tokens: int | None = None,
    ) -> None:
        self.samples = samples
        self.guidance = guidance
        self.tokens = 80 if tokens is None else tokens
        self._has_length = tokens is not None
        self._generator = Frozen(generator)
        self._start: StartModel | None = None
        self._drawn: tuple[Embedder | None, dict[PromptLike, tuple[Tensor, Tensor]]] = None, {}

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = problems_of_counts(samples=self.samples, tokens=self.tokens)
        if self.guidance is not None:
            found += problems_of(self.guidance, context, under="guidance")
        if self._generator.model is not None:
            found += problems_of(self._generator.model, context, under="generator.init_args")
            found += problems_of_length(self.tokens, context)
        elif not context.training:
            text = (
                "expected the start model, since there is none outside of a fit, but got none. Name it: CausalLM, say."
            )
            found.append(Problem("generator", text))
        elif self._has_length:
            text = f"expected none in a fit, whose start samples are as long as its samples, but got {self.tokens}."
            found.append(Problem("tokens", f"{text} Leave it out, or set `@/model.sampling.max_new_tokens`."))
        return found

    def load(self) -> Self:
        generator = self._generator.model
        if generator is not None and self._start is None:
            generator.load()
            self._generator.on(device())
            self._start = StartModel(generator, Sampling(max_new_tokens=self.tokens))
        return self

    def attach(self, start: StartModel) -> None:
        if self._generator.model is None:
            self._start = start

    @property
    def draws_from_start(self) -> bool:
        return self._generator.model is None

    def size(self) -> int:
        return self.samples

    def number(self, prompt: str) -> int:
        return self.samples

    def parts(self) -> Iterator[Sequence[Any]]:
        text = "expected outputs of all prompts together, but start samples belong to one prompt each. Use Texts or Sounds."
        raise ConfigError(Problem("", text))

    def weight(self, prompts: Sequence[str]) -> Tensor:
        return torch.block_diag(*[torch.ones(1, self.samples)] * len(prompts))

    def _read(self, embedder: Embedder, prompts: Sequence[PromptLike]) -> tuple[Tensor, Tensor]:
        if not prompts:
            return super()._read(embedder, prompts)
        assert self._start is not None, "attach() or load() comes first"
        if self._drawn[0] is not embedder:
            self._drawn = embedder, {}
        known = self._drawn[1]
        for prompt in prompts:
            if prompt not in known:
                outputs = self._start.draw(prompt, self.samples, self.guidance).outputs
                known[prompt] = embedder.embed(outputs), ~embedder.degenerate(outputs)
        vectors, counts = zip(*(known[prompt] for prompt in prompts), strict=True)
        return torch.cat(vectors), torch.cat(counts)
