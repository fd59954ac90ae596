"""A step with NaN or infinity is skipped, counted and written down; too many of them in a row stop the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import Bigrams, Counts, SickGradient, SickKL, module_with
from tiny_fits import Recorder, batches, every_step, same, snapshot, trainer

from cfg_distill.callbacks import StudentEMA
from cfg_distill.distillation.bad_steps import MOST_FILES
from cfg_distill.errors import ConfigError

SKIPPED = r"Step {} is skipped, and no weight moves: {}.* Prompts and samples: .*step-{:06d}-rank-0.json"


CUT = {"micro_batch": 3, "measure_gradients_every": 2}
FAULTS = {
    "reward": (lambda: {"reward": Bigrams([2])}, "the loss of `diversity` is nan"),
    "infinite reward": (lambda: {"reward": Bigrams([2], value=torch.inf)}, "the loss of `diversity` is (nan|-?inf)"),
    "embedding": (lambda: {"reward": Bigrams([2], "embedding")}, "the loss of `diversity` is nan"),
    "infinite embedding": (lambda: {"reward": Bigrams([2], "embedding", torch.inf)}, "the loss of `diversity` is nan"),
    "loss": (lambda: {"reward": Bigrams(), "kl": SickKL(2)}, "the loss of `kl` is (inf|nan)"),
    "gradient": (lambda: {"reward": Bigrams()}, "the gradient is NaN or infinite"),
}


@pytest.mark.parametrize(
    ("fault", "cut"),
    [
        *((fault, CUT if number % 2 else {}) for number, fault in enumerate(FAULTS)),
        *(pytest.param(f, {} if number % 2 else CUT, marks=pytest.mark.slow) for number, f in enumerate(FAULTS)),
    ],
)
def test_the_third_step_is_skipped_and_the_run_goes_on(
    tiny_model: str, tmp_path: Path, fault: str, cut: dict[str, int]
) -> None:
    """On a step that measures gradients and on one that does not, in one piece and in micro-batches."""
    make, reason = FAULTS[fault]
    module = module_with(tiny_model, **make(), **cut)
    recorder, average, counts = Recorder(), StudentEMA(), Counts()
    sick = [SickGradient(2)] if fault == "gradient" else []
    fit = trainer([recorder, average, counts, *sick], tmp_path, gradient_clip_val=1.0)
    with pytest.warns(UserWarning, match=SKIPPED.format(2, reason, 2)):
        fit.fit(module, batches(4))
    first, second, third, fourth = recorder.steps
    assert same(second, third)
    assert not same(first, second) and not same(third, fourth)
    assert counts.seen == [0, 0, 1, 1]
    state = fit.optimizers[0].state_dict()["state"]
    kept = [module.state_dict(), average.averages(module), *state.values()]
    assert all(each.isfinite().all() for part in kept for each in part.values() if each.is_floating_point())
    assert {int(each["step"]) for each in state.values()} == {3}  # steps of AdamW
    past = module.losses["diversity"].reward.past
    assert int(past.updates) == (4 if fault in ("loss", "gradient") else 3)
    assert int(module.count.length.updates) == 3
    record = json.loads((tmp_path / "bad_steps" / "step-000002-rank-0.json").read_text())
    assert (record["step"], record["rank"]) == (2, 0)
    assert [row["prompt"] for row in record["samples"]] == ["w8 w9"] * 3 + ["w10"] * 3
    for row in record["samples"]:
        assert row["tokens"] and isinstance(row["text"], str) and row["reward"].keys() == {"diversity"}
    found = {row["reward"]["diversity"] for row in record["samples"]}
    assert bool(found & {"nan", "inf"}) == (fault not in ("loss", "gradient"))


def test_a_bad_batch_spoils_the_whole_step_that_accumulates_it(tiny_model: str, tmp_path: Path) -> None:
    module = module_with(tiny_model, Bigrams([2]), micro_batch=3)
    recorder = Recorder()
    with pytest.warns(UserWarning, match=SKIPPED.format(1, "the loss of `diversity` is nan", 1)):
        trainer([recorder], tmp_path, accumulate_grad_batches=2).fit(module, batches(6))
    assert same(*recorder.steps[:2]) and not same(*recorder.steps[1:])
    record = json.loads((tmp_path / "bad_steps" / "step-000001-rank-0.json").read_text())
    assert len(record["samples"]) == 12 and len(record["sums"]) == 2


def test_too_many_in_a_row_stop_the_run_with_one_report(tiny_model: str, tmp_path: Path) -> None:
    module = module_with(tiny_model, Bigrams(range(2, 100)), max_bad_steps=2)
    report = (
        r"^Key `model.losses.diversity`: expected a finite loss, but got nan in step 4. Step 4 was not taken.*It is bad step"
        r" number 3 in a row \(`model.max_bad_steps`: 2\). Prompts and samples: .*step-000004-rank-0.json. Look at what"
    )
    with pytest.warns(UserWarning, match="is skipped") as said, pytest.raises(ConfigError, match=report) as caught:
        trainer([], tmp_path).fit(module, batches(20))
    texts = [str(each.message) for each in said if "is skipped" in str(each.message)]
    assert [text.split(" is ")[0] for text in texts] == ["Step 2", "Step 3"]
    assert len(caught.value.problems) == 1
    assert all(tensor.isfinite().all() for tensor in snapshot(module).values())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_few_files_are_written_and_the_count_survives(tiny_model: str, tmp_path: Path) -> None:
    module = module_with(tiny_model, Bigrams(range(1, 100)), max_bad_steps=50)
    with pytest.warns(UserWarning, match="is skipped") as said:
        trainer([every_step(tmp_path)], tmp_path).fit(module, batches(MOST_FILES + 3))
    assert len([each for each in said if f"holds {MOST_FILES} files of rank 0 already" in str(each.message)]) == 2
    assert len(list((tmp_path / "bad_steps").iterdir())) == MOST_FILES
    resumed, counts = module_with(tiny_model, Bigrams()), Counts()
    before = str(tmp_path / "saved" / "step=3.ckpt")
    trainer([counts], tmp_path, enable_checkpointing=False).fit(resumed, batches(MOST_FILES + 3), ckpt_path=before)
    assert set(counts.seen) == {2}


def test_a_folder_that_cannot_be_written_ends_no_run(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.warns(UserWarning, match=r"could not be written to .*: No space left on device\. The run stops after"):
        trainer([], tmp_path).fit(module_with(tiny_model, Bigrams([1])), batches(3))
