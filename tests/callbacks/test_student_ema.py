"""StudentEMA: what is averaged, when it stands in the student, and what survives a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import tiny_folder
from tiny_fits import Recorder, batches, same, snapshot, student_of, trainer

from cfg_distill.callbacks import StudentEMA
from cfg_distill.checkpoints.shards import sharded_like, whole
from cfg_distill.errors import ConfigError

# A resumed fit here does without the ModelCheckpoint of the first.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class Counting(StudentEMA):
    """Counts what happens to the student."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.swapped = [0, 0]

    def swap_in(self, module: Any) -> None:
        before = snapshot(module)
        super().swap_in(module)
        self.swapped[0] += not same(before, snapshot(module))

    def swap_out(self, module: Any) -> None:
        before = snapshot(module)
        super().swap_out(module)
        self.swapped[1] += not same(before, snapshot(module))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return tiny_folder(tmp_path / "model")


def expected_average(steps: list[dict[str, torch.Tensor]], decays: list[float], name: str) -> np.ndarray:
    average = steps[0][name].double().numpy()
    for weights, decay in zip(steps[1:], decays, strict=True):
        average = decay * average + (1 - decay) * weights[name].double().numpy()
    return average


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        ({"decay": 0.5}, [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15]),
        ({"decay": 0.2}, [2 / 11, 0.2, 0.2, 0.2, 0.2]),
        ({"decay": 0.5, "warmup": False}, [0.5] * 5),
    ],
)
def test_the_average_is_the_formula_in_float64(folder: str, settings: dict[str, Any], decays: list[float]) -> None:
    ema, recorder, module = StudentEMA(**settings), Recorder(), student_of(folder)
    trainer([ema, recorder]).fit(module, batches(6), batches(1))
    averages = ema.averages(module)
    assert len(recorder.steps) == ema.updates == 6
    assert averages.keys() == snapshot(module).keys()
    for name, average in averages.items():
        np.testing.assert_allclose(
            average.numpy(), expected_average(recorder.steps, decays, name), rtol=1e-5, atol=1e-6
        )


def test_updates_count_optimiser_steps_from_the_first_asked_for(folder: str) -> None:
    """12 batches accumulated by 2 are 6 steps; after 1 of them, every second: steps 2, 4, 6."""
    ema, recorder, module = (
        StudentEMA(decay=0.5, update_every=2, start_step=1, warmup=False),
        Recorder(),
        student_of(folder),
    )
    trainer([ema, recorder], accumulate_grad_batches=2).fit(module, batches(12), batches(1))
    assert len(recorder.steps) == 6
    assert ema.updates == 3
    name = "student.model.lm_head.weight"
    expected = expected_average([recorder.steps[step - 1] for step in (2, 4, 6)], [0.5, 0.5], name)
    np.testing.assert_allclose(ema.averages(module)[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_validation_sees_the_averages_and_training_never_does(folder: str) -> None:
    ema, recorder, module = Counting(decay=0.9), Recorder(), student_of(folder)
    trainer([ema, recorder], val_check_interval=2, num_sanity_val_steps=1).fit(module, batches(6), batches(2))
    # A sanity check with one batch, before the first update; then three validations of two.
    assert len(recorder.validated) == 1 + 3 * 2
    assert ema.swapped == [3, 3]
    assert not same(recorder.validated[1], recorder.steps[1])
    for number in range(3):
        assert same(recorder.after[1 + number], recorder.steps[2 * number + 1])
    assert same({name: average.float() for name, average in ema.averages(module).items()}, recorder.validated[-1])
    assert same(snapshot(module), recorder.steps[-1])

    plain, bare = Recorder(), student_of(folder)
    trainer([plain], val_check_interval=2, num_sanity_val_steps=1).fit(bare, batches(6), batches(2))
    assert all(same(one, other) for one, other in zip(recorder.steps, plain.steps, strict=True))


def test_nothing_is_swapped_before_the_first_update(folder: str) -> None:
    ema, recorder, module = Counting(decay=0.9, start_step=100), Recorder(), student_of(folder)
    trainer([ema, recorder], val_check_interval=2).fit(module, batches(4), batches(1))
    assert ema.updates == 0
    assert ema.swapped == [0, 0]
    assert ema.averages(module) == {}
    assert same(recorder.validated[0], recorder.steps[1])
    assert same(snapshot(module), recorder.steps[-1])


def test_another_schedule_by_overriding(folder: str) -> None:
    class OnlyThird(StudentEMA):
        def should_update(self, step: int) -> bool:
            return step == 3

    ema, recorder, module = OnlyThird(), Recorder(), student_of(folder)
    trainer([ema, recorder]).fit(module, batches(5), batches(1))
    assert ema.updates == 1
    assert ema.state_key == "StudentEMA"
    assert same(ema.averages(module), recorder.steps[2])


class Crash(RuntimeError):
    pass


class CrashInValidation(Recorder):
    """Stops the second validation in the middle."""

    def on_validation_batch_end(self, *arguments: Any) -> None:
        if len(self.validated) == 2:
            raise Crash


def test_a_crash_while_swapped_gives_the_live_weights_back_and_saves_both(folder: str, tmp_path: Path) -> None:
    ema, recorder, module = Counting(decay=0.9), CrashInValidation(), student_of(folder)
    saving = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_on_exception=True, every_n_train_steps=100)
    with pytest.raises(Crash):
        trainer([ema, recorder, saving], val_check_interval=2).fit(module, batches(6), batches(1))
    assert ema.swapped == [2, 2]
    assert same(snapshot(module), recorder.steps[3])
    (file,) = (tmp_path / "saved").glob("*.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    for name, live in recorder.steps[3].items():
        assert torch.equal(checkpoint["state_dict"][name], live)
        assert torch.equal(checkpoint["callbacks"]["StudentEMA"]["weights"][name], ema.averages(module)[name])


def test_a_checkpoint_taken_in_the_middle_of_a_validation_holds_the_live_weights(folder: str, tmp_path: Path) -> None:
    class SaveInValidation(Recorder):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")

    ema, recorder, module = StudentEMA(decay=0.9), SaveInValidation(), student_of(folder)
    trainer([ema, recorder]).fit(module, batches(3), batches(1))
    assert not same(recorder.validated[0], recorder.steps[-1])
    state = torch.load(tmp_path / "middle.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], live) for name, live in recorder.steps[-1].items())


def test_a_checkpoint_holds_the_averages_of_the_student_and_of_nothing_else(folder: str, tmp_path: Path) -> None:
    ema, module = StudentEMA(), student_of(folder)
    fitted = trainer([ema])
    fitted.fit(module, batches(2), batches(1))
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["StudentEMA"]
    assert (state["updates"], state["step"]) == (2, 2)
    assert state["weights"].keys() == snapshot(module).keys()
    assert state["weights"].keys() <= checkpoint["state_dict"].keys()
    assert all(average.dtype == torch.float32 for average in state["weights"].values())
    assert not any("teacher" in name for name in state["weights"])


def test_a_resumed_average_is_that_of_an_unbroken_run(folder: str, tmp_path: Path) -> None:
    unbroken, whole_module = StudentEMA(decay=0.9), student_of(folder)
    saving = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=3, save_top_k=-1)
    trainer([unbroken, saving]).fit(whole_module, batches(6), batches(1))

    resumed, module = Counting(decay=0.9), student_of(folder)
    trainer([resumed]).fit(module, batches(6), batches(1), ckpt_path=tmp_path / "saved" / "step=3.ckpt")
    assert resumed.updates == unbroken.updates == 6
    assert same(snapshot(module), snapshot(whole_module))
    assert same(resumed.averages(module), unbroken.averages(whole_module))
    assert resumed.swapped[0] == resumed.swapped[1] == 1


def test_validating_a_checkpoint_alone_uses_its_averages(folder: str, tmp_path: Path) -> None:
    ema, module = StudentEMA(decay=0.9), student_of(folder)
    fitted = trainer([ema])
    fitted.fit(module, batches(4), batches(1))
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    recorder, again = Recorder(), student_of(folder)
    trainer([StudentEMA(decay=0.9), recorder]).validate(
        again, batches(1), ckpt_path=tmp_path / "end.ckpt", verbose=False
    )
    assert same(recorder.validated[0], ema.averages(module))
    assert same(snapshot(again), snapshot(module))


def test_averages_loaded_while_validating_can_be_updated_afterwards(folder: str) -> None:
    ema, module = StudentEMA(decay=0.9), student_of(folder)
    module.configure_model()
    ema.update(module)
    again = StudentEMA(decay=0.9)
    again.load_state_dict(ema.state_dict())
    with torch.inference_mode():  # as Lightning validates
        again.swap_in(module)
        again.swap_out(module)
    again.update(module)
    assert again.updates == 2


def test_a_half_precision_student_is_averaged_in_float32(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfg_distill.generators import CausalLM

    ema, module = Counting(decay=0.999, warmup=False), student_of(folder, generator=CausalLM(folder, dtype="bfloat16"))
    monkeypatch.setattr(module, "problems", list)  # one is that such a student learns little
    trainer([ema]).fit(module, batches(4), batches(1))
    averages = ema.averages(module)
    assert all(average.dtype == torch.float32 for average in averages.values())
    # At this decay a bfloat16 average would not move at all.
    moved = sum(not torch.equal(average.bfloat16().float(), average) for average in averages.values())
    assert moved > len(averages) / 2
    assert ema.swapped[0] == ema.swapped[1]


def test_tied_weights_are_averaged_once_and_saved_under_both_names(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "tied"
    tiny_folder(folder)
    config = LlamaConfig.from_pretrained(folder, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    ema, module = StudentEMA(), student_of(str(folder))
    fitted = trainer([ema])
    fitted.fit(module, batches(2), batches(1))
    names = {"student.model.lm_head.weight", "student.model.model.embed_tokens.weight"}
    assert len(names & ema._averages.keys()) == 1
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    weights = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["StudentEMA"]["weights"]
    assert names <= weights.keys()
    assert torch.equal(*(weights[name] for name in names))


def test_an_average_of_another_student_is_refused(folder: str) -> None:
    ema, module = StudentEMA(), student_of(folder)
    module.configure_model()
    ema.load_state_dict({"updates": 1, "step": 1, "weights": {"student.model.other": torch.zeros(2)}})
    with pytest.raises(ConfigError, match="fits another student: it lacks"):
        ema.averages(module)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"`StudentEMA.decay`: expected a number in \[0, 1\), but got 1.0"),
        ({"update_every": 0}, "`StudentEMA.update_every`: expected at least 1, but got 0"),
        ({"start_step": -1}, "`StudentEMA.start_step`: expected at least 0, but got -1"),
    ],
)
def test_settings_that_make_no_sense(folder: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer([StudentEMA(**settings)]).fit(student_of(folder), batches(1))


def test_a_whole_tensor_needs_no_shards() -> None:
    tensor = torch.ones(3)
    assert whole(tensor) is tensor
    assert torch.equal(sharded_like(tensor, torch.zeros(3)), tensor)


def test_a_bias_that_forbids_a_token_has_an_average(folder: str) -> None:
    module = student_of(folder)
    module.configure_model()
    norm = module.student.model.model.norm.weight
    with torch.no_grad():
        norm[0] = -torch.inf
    ema = StudentEMA(decay=0.5)
    ema.update(module)
    with torch.no_grad():
        norm[1:] += 1
    ema.update(module)
    (average,) = (value for name, value in ema.averages(module).items() if name.endswith("model.norm.weight"))
    assert average[0] == -torch.inf and (average[1:] > norm[1:] - 1).all() and (average[1:] < norm[1:]).all()
