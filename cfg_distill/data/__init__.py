"""Prompts as a LightningDataModule: text, JSON lines, CSV, Hugging Face datasets on disk."""

from typing import TYPE_CHECKING, Any

from cfg_distill.data.reading import problem_of_conditions, problem_of_text, read_prompts

if TYPE_CHECKING:
    from cfg_distill.data.module import PromptData

__all__ = ["PromptData", "problem_of_conditions", "problem_of_text", "read_prompts"]


def __getattr__(name: str) -> Any:
    # Reading prompts needs no torch; the data module does.
    if name == "PromptData":
        from cfg_distill.data.module import PromptData

        return PromptData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
