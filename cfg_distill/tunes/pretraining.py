"""Pre-training of the embedded model: a plain LlamaForCausalLM on the tunes, written as a plain Hugging Face folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cfg_distill.errors import Problem, problems_of_counts, problems_of_shares
from cfg_distill.tunes.data import IGNORED
from cfg_distill.tunes.optimizer import MuonAdamW, parameter_groups
from cfg_distill.tunes.training import FolderTraining


def nll(logits_NTV: Tensor, labels_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the labels in nats: the sum, and how many were predicted.

    The logits at position t predict the label at t + 1. Labels of -100 do not count.
    """
    sum_ = functional.cross_entropy(
        logits_NTV[:, :-1].flatten(0, 1).float(), labels_NT[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return sum_, (labels_NT[:, 1:] != IGNORED).sum()


class Pretraining(FolderTraining):
    """Next-token training with dropout; logs ``val/nll`` (with condition) and ``val/nll_null`` (all conditions dropped).

    At the end of a fit the best weights (by the ModelCheckpoint of the trainer; the last ones if there is none) are
    written to ``out`` with config, tokenizer and a neutral generation config.

    Args:
        optimizer: takes the two groups of :func:`parameter_groups`.
        out: the folder to write.
        overwrite: write even when the folder holds a model.
        width, layers, heads, intermediate: of the network.
        dropout: on the embeddings and on what each attention and each feed-forward block adds.
        warmup_steps: of the learning rate.
        decay_steps: the step at which the learning rate has fallen to 0.
        max_length: positions of the network.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = MuonAdamW,
        out: str = "runs/tunes/base",
        overwrite: bool = False,
        width: int = 224,
        layers: int = 4,
        heads: int = 4,
        intermediate: int = 512,
        dropout: float = 0.1,
        warmup_steps: int = 100,
        decay_steps: int = 3000,
        max_length: int = 512,
    ) -> None:
        super().__init__(optimizer, out, overwrite, warmup_steps, decay_steps)
        self.width, self.layers, self.heads, self.intermediate = width, layers, heads, intermediate
        self.dropout, self.max_length = dropout, max_length

    # Life cycle

    def problems(self) -> list[Problem]:
        sizes = {"width": self.width, "layers": self.layers, "heads": self.heads}
        found = super().problems() + problems_of_shares(dropout=self.dropout)
        found += problems_of_counts(**sizes, intermediate=self.intermediate, max_length=self.max_length)
        if not found and self.width % (2 * self.heads):  # rotary positions turn pairs of numbers
            text = f"expected a multiple of twice `@.heads`, {2 * self.heads}, but got {self.width}."
            found.append(Problem("width", text))
        return found

    def configure_model(self) -> None:
        """The network needs the size of the vocabulary, which the data know."""
        if list(self.children()):  # Lightning asks again for each stage
            return
        tokenizer = self._tokenizer
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=self.max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.network = LlamaForCausalLM(config)
        add_dropout(self.network, self.dropout)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        sum_, count = self._nll(batch)
        loss = sum_ / count
        self.log("train/nll", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_nll("val", batch, dataloader_idx)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_nll("test", batch, dataloader_idx)

    def trainable(self) -> Iterable[Any]:
        return parameter_groups(self.network)

    def write(self, folder: str) -> None:
        save_folder(self.network, self._tokenizer, folder)

    # Parts

    @property
    def _tokenizer(self) -> PreTrainedTokenizerFast:
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    def _nll(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        # No mask: the padding is on the right, where causal attention never looks.
        return nll(self.network(input_ids=batch["tokens"]).logits, batch["labels"])

    def _log_nll(self, stage: str, batch: dict[str, Tensor], loader: int) -> None:
        sum_, count = self._nll(batch)
        name = f"{stage}/nll_null" if loader else f"{stage}/nll"
        # Weighted by the number of predicted tokens. So the value is the mean over tokens, and does not depend on the batches.
        self.log(name, sum_ / count, batch_size=int(count), add_dataloader_idx=False, prog_bar=True, sync_dist=True)


def add_dropout(network: LlamaForCausalLM, probability: float) -> None:
    """Dropout that LlamaConfig does not offer, as forward hooks: the saved network stays a plain Llama.

    It falls on the embeddings and on what each block adds to the residual stream, while the network is in training.
    """

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        first = functional.dropout(first, probability, module.training)
        return (first, *rest) if isinstance(output, tuple) else first

    network.model.embed_tokens.register_forward_hook(drop)
    for layer in network.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def save_folder(network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: str | Path) -> None:
    """A plain Hugging Face folder. Its generation config is neutral: transformers' ``generate`` samples the model's own
    distribution (its defaults would decode greedily, or with top-k 50)."""
    network.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
