"""Any sentence encoder of transformers as an embedder of texts. Shapes: N texts, S tokens, D embedding width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from cfg_distill.embedders.base import problems_of_path, texts_of
from cfg_distill.embedders.degeneration import Ignored, TextEmbedder, problems_of_ignored
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_counts
from cfg_distill.folders import from_hub


class TransformerEmbedder(TextEmbedder):
    """An ``AutoModel`` encoder: pooled, L2-normalised last hidden states, float32 whatever the trainer's precision.

    Args:
        path: a model folder or a hub name.
        pooling: ``mean`` over the tokens, as most sentence encoders are trained, or ``cls``, the first token.
        batch_size: texts at once; texts of like length share a batch.
        max_length: tokens of a text that are read; the rest is cut off.
        ignored: which texts earn no diversity: ``empty`` ones, without a letter or digit; or ``degenerate`` ones, which also
            loop, fall apart or have fewer than three words (:func:`cfg_distill.metrics.degenerate`).
    """

    model: Any

    def __init__(
        self,
        path: str,
        pooling: Literal["mean", "cls"] = "mean",
        batch_size: int = 32,
        max_length: int = 256,
        ignored: Ignored = "empty",
    ) -> None:
        super().__init__(ignored)
        self.path = path
        self.pooling = pooling
        self.batch_size = batch_size
        self.max_length = max_length

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = problems_of_path(self.path)
        found += problems_of_counts(batch_size=self.batch_size, max_length=self.max_length)
        found += problems_of_ignored(self.ignored)
        if self.pooling not in ("mean", "cls"):
            found.append(Problem("pooling", f"expected `mean` or `cls`, but got `{self.pooling}`."))
        if found:
            return found
        try:
            positions = getattr(self.config, "max_position_embeddings", None)
        except ConfigError as error:
            return [Problem("path", problem.text) for problem in error.problems]
        if self.tokenizer.pad_token_id is None:
            found.append(
                Problem(
                    "path",
                    f"expected a tokenizer with a pad token or an end token, but the tokenizer of `{self.path}` has neither."
                    " Set one in its tokenizer_config.json.",
                )
            )
        if positions is not None and self.max_length > positions:
            text = f"expected at most the {positions} positions of `{self.path}`, but got {self.max_length}. Lower it."
            found.append(Problem("max_length", text))
        return found

    def load(self) -> Self:
        if "model" not in self._modules:
            model = self._from_hub(AutoModel, dtype=torch.float32)
            model = model.get_encoder() if model.config.is_encoder_decoder else model  # of T5, which has a decoder, too
            self.model = model.requires_grad_(False).eval()
        return self

    @cached_property
    def config(self) -> Any:
        return self._from_hub(AutoConfig)

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer = self._from_hub(AutoTokenizer, padding_side="right")
        if tokenizer.pad_token_id is None:
            # Only its id is needed: padded cells are masked.
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def _from_hub(self, loader: Any, **settings: Any) -> Any:
        return from_hub(loader, self.path, "a text encoder", "Embedder", **settings)

    @torch.no_grad()
    def embed(self, outputs: Sequence[str]) -> Tensor:
        # Dropout in a reward would be noise; a parent's train() must not switch it on.
        self.model.eval()
        device = self.model.device
        limit = min(self.max_length, self.tokenizer.model_max_length)
        rows = self.tokenizer(texts_of(f"Embedder `{self.path}`", outputs), truncation=True, max_length=limit)[
            "input_ids"
        ]
        # A tokenizer that adds nothing leaves an empty text without a token to read.
        rows = [row or [self.tokenizer.pad_token_id] for row in rows]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        with torch.autocast(device.type, enabled=False):
            sorted_ND = torch.cat([self._pooled([rows[index] for index in batch]) for batch in batches])
        embedding_ND = torch.empty_like(sorted_ND)
        embedding_ND[torch.tensor(order, device=device)] = sorted_ND
        return torch.nn.functional.normalize(embedding_ND, dim=-1)

    def _pooled(self, rows: list[list[int]]) -> Tensor:
        batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.model.device)
        mask_NS = torch.arange(batch["input_ids"].shape[1], device=self.model.device) < torch.tensor(
            [[len(row)] for row in rows], device=self.model.device
        )
        hidden_NSD = self.model(input_ids=batch["input_ids"], attention_mask=mask_NS.long()).last_hidden_state.float()
        if self.pooling == "cls":
            return hidden_NSD[:, 0]
        mask_NS1 = mask_NS.unsqueeze(-1)
        return hidden_NSD.where(mask_NS1, 0.0).sum(1) / mask_NS1.sum(1)
