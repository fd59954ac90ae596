"""A prompt is its text and its conditions, and travels with both."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from cfg_distill.guidance import Guidance
from cfg_distill.prompt import Prompt


def test_prompts_with_other_conditions_are_other_prompts() -> None:
    one, other, plain = Prompt("rock", melody="a.wav"), Prompt("rock", melody="b.wav"), Prompt("rock")
    assert len({one, other, plain, Prompt("rock", melody="a.wav")}) == 3
    assert one != other and one != plain and hash(one) != hash(other)
    assert Prompt("rock", a="1", b="2") == Prompt("rock", b="2", a="1")
    assert hash(Prompt("rock", a="1", b="2")) == hash(Prompt("rock", b="2", a="1"))
    for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied == one and hash(copied) == hash(one)


def test_a_text_is_a_prompt_at_one_place_and_a_prompt_shows_as_its_text() -> None:
    prompt = Prompt("rock", melody="a.wav")
    assert Prompt.of(prompt) is prompt and Prompt.of("rock") == Prompt("rock")
    assert f"{prompt}" == str(prompt) == "rock"
    assert Prompt("rock", text="a", self="b").conditions == {"text": "a", "self": "b"}
    with pytest.raises(FrozenInstanceError):
        prompt.text = "jazz"  # type: ignore[misc]


def test_lightning_moves_a_batch_of_prompts_and_leaves_them_as_they_are() -> None:
    batch = [Prompt("rock", melody="a.wav"), "jazz"]
    assert move_data_to_device(batch, torch.device("cpu")) == batch


def test_the_negative_branch_keeps_the_conditions_of_the_prompt() -> None:
    guidance = Guidance(2.0, negative_system="be dull")
    assert guidance.negatives([Prompt("rock", melody="a.wav"), "jazz", None]) == [
        Prompt("rock", melody="a.wav", system="be dull"),
        Prompt("jazz", system="be dull"),
        Prompt("", system="be dull"),
    ]
