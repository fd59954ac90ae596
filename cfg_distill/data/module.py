"""PromptData: the prompts of a fit."""

from collections.abc import Callable, Sequence

import lightning as L
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from cfg_distill.data.batches import PromptBatches, Prompts
from cfg_distill.data.reading import in_both, read_prompts, together
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_counts, problems_of_not_negative
from cfg_distill.prompt import PromptLike


class PromptData(L.LightningDataModule):
    """Train, validation and report prompts, kept apart. A batch is a list of texts.

    A run stopped in the middle of an epoch goes on at the next batch. Which prompts make which step depends on the prompts per
    step, ``batch_size`` times devices times ``trainer.accumulate_grad_batches``, not on how they are split. For the kinds of
    files, see :func:`cfg_distill.data.read_prompts`.

    Args:
        train: the prompts to train on.
        validation: the prompts that callbacks and metrics see during a fit; empty for none.
        report: the prompts of the final evaluation. A fit reads them only to check that it neither trains nor validates on
            one of them.
        batch_size: prompts per training batch, on each device.
        validation_batch_size: prompts per validation batch; 0 for ``batch_size``.
        field: the JSON field or CSV column that holds the prompt.
        shuffle: train in another order every epoch.
        seed: of that order; null takes ``seed_everything``, or 0 in a script.
    """

    def __init__(
        self,
        train: str,
        validation: str = "",
        report: str = "",
        batch_size: int = 8,
        validation_batch_size: int = 0,
        field: str = "prompt",
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.files = {"train": train, "validation": validation, "report": report}
        self.batch_size = batch_size
        self.validation_batch_size = validation_batch_size
        self.field = field
        self.shuffle = shuffle
        self.seed = 0 if seed is None else seed
        self.prompts: dict[str, list[PromptLike]] = {}
        self._batches: PromptBatches | None = None

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings and the files."""
        found = problems_of_counts(batch_size=self.batch_size)
        if self.validation_batch_size < 0:
            text = f"expected at least 1, or 0 for `@.batch_size`, but got {self.validation_batch_size}."
            found.append(Problem("validation_batch_size", text))
        found += problems_of_not_negative(seed=self.seed)
        prompts = {}
        for name, path in self.files.items():
            if path or name == "train":
                try:
                    prompts[name] = read_prompts(path, self.field)
                except ConfigError as error:
                    found += error.under(name)
        for kept_apart, others in (("validation", ("train",)), ("report", ("train", "validation"))):
            found += [_shared(kept_apart, other, prompts) for other in others if _overlap(kept_apart, other, prompts)]
        return found

    def located(
        self, part: str, found: Sequence[Problem], asked: Callable[[PromptLike], Sequence[PromptLike]]
    ) -> list[Problem]:
        """Problems of the prompts of a part, by their lines in its file: see :func:`cfg_distill.data.reading.together`."""
        return together(found, self.files[part], self.field, asked)

    def setup(self, stage: str) -> None:
        """Read the files.

        Raises:
            ConfigError: see :meth:`problems`.
        """
        if self.prompts:
            return
        if problems := self.problems():
            raise ConfigError(problems)
        self.prompts = {
            name: read_prompts(self.files[name], self.field) for name in ("train", "validation") if self.files[name]
        }

    def train_dataloader(self) -> StatefulDataLoader:
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        return self._loader("train", self.batch_size, self.shuffle, accumulate)

    def upcoming(self) -> list[PromptLike]:
        """The prompts of the next training batch of this process; empty at the end of an epoch."""
        return [] if self._batches is None else [self.prompts["train"][number] for number in self._batches.upcoming()]

    def val_dataloader(self) -> StatefulDataLoader | list:
        if "validation" not in self.prompts:
            return []
        return self._loader("validation", self.validation_batch_size or self.batch_size, shuffle=False)

    def _loader(self, name: str, batch_size: int, shuffle: bool, accumulate: int = 1) -> StatefulDataLoader:
        prompts = self.prompts[name]
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = PromptBatches(len(prompts), batch_size, shuffle, self.seed, rank, world, accumulate)
        if name == "train":
            self._batches = batches
        # The sampler deals whole batches: batch_size=None turns the loader's own batching off.
        # A generator of its own: making an iterator draws a number, which a resumed run does at other moments.
        own = torch.Generator()
        return StatefulDataLoader(Prompts(prompts), batch_size=None, sampler=batches, generator=own)


def _overlap(name: str, other: str, prompts: dict[str, list[PromptLike]]) -> list[str]:
    """The texts of ``name`` that ``other`` has too under the same conditions, up to case and space."""
    return sorted(set(in_both(prompts.get(other, ()), prompts.get(name, ()))))


def _shared(name: str, other: str, prompts: dict[str, list[PromptLike]]) -> Problem:
    both = _overlap(name, other, prompts)
    shown = ", ".join(map(repr, both[:3])) + (", ..." if len(both) > 3 else "")
    return Problem(
        name,
        f"expected prompts that `@.{other}` does not have, but {len(both)} are in both: {shown}."
        " Take them out of one of the files.",
    )
