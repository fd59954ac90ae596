"""CheckpointMerging: what is merged, written and scored, and that the student is as before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tiny import tiny_folder
from tiny_fits import DistinctFirst, MeanLength, batches, same, snapshot, student_of, trainer
from transformers import AutoModelForCausalLM

from cfg_distill.callbacks import CheckpointMerging, StudentEMA
from cfg_distill.checkpoints import spec_of
from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.generators import CausalLM
from cfg_distill.merging import lerp, liti, slerp
from cfg_distill.sampling import Seeds

WEIGHTS = [0.0, 0.25, 1.0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a checkpoint of another fit from it, with averages."""
    place = tmp_path_factory.mktemp("trained")
    fitted = trainer([StudentEMA(decay=0.9)])
    fitted.fit(student_of(tiny_folder(place / "model"), seed=7), batches(3), batches(1))
    fitted.save_checkpoint(place / "partner.ckpt")
    return place


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(trained / "model", tmp_path / "model"))


@pytest.fixture
def partner(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(trained / "partner.ckpt", tmp_path / "partner.ckpt"))


class Ends(Callback):
    """The student before and after the end of training; stands after CheckpointMerging in the list."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.before = snapshot(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.after = snapshot(pl_module)


def fit(folder: str, merging: CheckpointMerging, root: Path, *others: Callback) -> tuple[Any, Ends, Any]:
    module, ends = student_of(folder), Ends()
    fitted = trainer([*others, merging, ends], root=root)
    fitted.fit(module, batches(3), batches(2))
    return module, ends, fitted


def read(path: Path) -> dict[str, torch.Tensor]:
    return {
        f"student.model.{name}": tensor
        for name, tensor in AutoModelForCausalLM.from_pretrained(path).state_dict().items()
    }


def checkpoint_weights(path: Path, kind: str) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["state_dict"] if kind == "raw" else checkpoint["callbacks"]["StudentEMA"]["weights"]
    return {name: tensor for name, tensor in state.items() if name.startswith("student.")}


@pytest.mark.parametrize("method", ["lerp", "slerp"])
def test_the_folders_are_the_merges_and_the_student_is_as_before(
    folder: str, partner: Path, tmp_path: Path, method: str
) -> None:
    merging = CheckpointMerging(str(partner), WEIGHTS, method, out=str(tmp_path / "out"))
    module, ends, _ = fit(folder, merging, tmp_path)
    assert same(ends.before, ends.after)
    other, own, start = checkpoint_weights(partner, "raw"), snapshot(module), read(Path(folder))
    assert not same(other, own)
    for weight in WEIGHTS:
        expected = lerp(other, own, weight) if method == "lerp" else slerp(other, own, start, weight)
        assert same(read(tmp_path / "out" / f"{weight:g}"), expected)
    written = json.loads((tmp_path / "out" / "0.25" / "merge.json").read_text())
    assert (written["method"], written["weight"], written["student_weights"]) == (method, 0.25, "raw")


def test_the_scores_are_those_of_the_folders(folder: str, partner: Path, tmp_path: Path) -> None:
    metrics = {"distinct": DistinctFirst(), "length": MeanLength()}
    merging = CheckpointMerging(str(partner), WEIGHTS, metrics=metrics, out=str(tmp_path / "out"))
    fit(folder, merging, tmp_path)
    table = json.loads((tmp_path / "out" / "merges.json").read_text())
    assert [row["weight"] for row in table["rows"]] == WEIGHTS
    for row in table["rows"]:
        alone = student_of(str(tmp_path / "out" / row["folder"]))
        alone.configure_model()
        for metric in metrics.values():
            metric.reset()
        for number, prompts in enumerate(batches(2)):
            samples = alone.draw(prompts, Seeds((0,), range(2 * number, 2 * number + 2)))
            for metric in metrics.values():
                metric.update(samples)
        assert row["metrics"] == {name: pytest.approx(float(metric.compute())) for name, metric in metrics.items()}
    assert table["rows"][0]["metrics"] != table["rows"][-1]["metrics"]


def test_averages_on_either_side(folder: str, partner: Path, tmp_path: Path) -> None:
    ema = StudentEMA(decay=0.9)
    merging = CheckpointMerging(str(partner), [0.5], use="ema", use_partner="ema", out=str(tmp_path / "out"))
    module, ends, _ = fit(folder, merging, tmp_path, ema)
    assert same(ends.before, ends.after)
    averages = ema.averages(module)
    assert not same(averages, snapshot(module))
    assert same(read(tmp_path / "out" / "0.5"), lerp(checkpoint_weights(partner, "ema"), averages, 0.5))


def test_a_folder_as_partner_and_liti_without_one(folder: str, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=3)
    module, ends, _ = fit(folder, CheckpointMerging(other, [0.5], out=str(tmp_path / "a")), tmp_path)
    assert same(ends.before, ends.after)
    assert same(read(tmp_path / "a" / "0.5"), lerp(read(Path(other)), snapshot(module), 0.5))
    module, ends, _ = fit(folder, CheckpointMerging("", [0.3], "liti", out=str(tmp_path / "b")), tmp_path)
    assert same(ends.before, ends.after)
    assert same(read(tmp_path / "b" / "0.3"), liti(read(Path(folder)), snapshot(module), 0.3))


def test_a_failing_score_gives_the_student_back_and_leaves_no_folder(
    folder: str, partner: Path, tmp_path: Path
) -> None:
    class Failing(MeanLength):
        def score(self, samples: Any) -> torch.Tensor:
            raise RuntimeError("no score")

    module, kept = student_of(folder), Ends()
    merging = CheckpointMerging(str(partner), [0.5], metrics={"length": Failing()}, out=str(tmp_path / "out"))
    with pytest.raises(RuntimeError, match="no score"):
        trainer([merging, kept], root=tmp_path).fit(module, batches(3), batches(1))
    assert same(kept.before, snapshot(module))
    assert not (tmp_path / "out").exists()


def test_all_problems_before_the_first_step(folder: str, partner: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    merging = CheckpointMerging("missing.ckpt", [0.5, 2.0], use="ema", out=str(tmp_path / "taken"))
    assert [problem.path for problem in merging.problems()] == ["partner", "weights", "out"]
    with pytest.raises(ConfigError) as error:
        fit(folder, merging, tmp_path)
    text = str(error.value)
    for part in ("`missing.ckpt` does not exist", "[0.5, 2.0]", "needs the callback StudentEMA", "taken` exists"):
        assert part in text
    with pytest.raises(
        ConfigError, match=r"taken` is not replaced, since this package does not write thesis\.tex there"
    ):
        fit(folder, CheckpointMerging(str(partner), out=str(tmp_path / "taken"), overwrite=True), tmp_path)


def test_merges_are_replaced_but_not_their_partner_nor_foreign_files(
    folder: str, partner: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fit(folder, CheckpointMerging(str(partner), [0.5], out=str(out)), tmp_path)
    again = CheckpointMerging(str(partner), [0.25], out=str(out), overwrite=True)
    assert again.problems() == []
    fit(folder, again, tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["0.25", "merges.json"]
    (problem,) = CheckpointMerging(str(out / "0.25"), [0.5], out=str(out), overwrite=True).problems()
    assert f"`{out}` holds the input `{out}/0.25`" in str(problem)
    (out / "0.25" / "README.md").write_text("A card of my own")
    (problem,) = again.problems()
    assert "does not write 0.25/README.md there" in str(problem)


def test_problems_of_metrics_are_named_by_their_path(partner: Path) -> None:
    class Wrong(MeanLength):
        def problems(self, context: Context = Context()) -> Any:
            return [Problem("n", "expected at least 1, but got 0.")]

    (problem,) = CheckpointMerging(str(partner), metrics={"length": Wrong()}).problems()
    assert (
        problem.under("trainer.callbacks[3].init_args").path
        == "trainer.callbacks[3].init_args.metrics.length.init_args.n"
    )


@pytest.mark.parametrize("use", ["raw", "ema"])
def test_a_broken_partner_is_one_message(folder: str, partner: Path, tmp_path: Path, use: str) -> None:
    content = torch.load(partner, weights_only=True)
    if use == "ema":
        torch.save(content | {"callbacks": {}}, partner)
    else:
        partner.write_bytes(partner.read_bytes()[:-50])
    with pytest.raises(ConfigError) as error:
        fit(folder, CheckpointMerging(str(partner), use_partner=use, out=str(tmp_path / "out")), tmp_path)
    key, text = (
        ("use_partner", "holds none. Use raw") if use == "ema" else ("partner", "cannot be read as a checkpoint")
    )
    assert str(error.value).startswith(f"Key `CheckpointMerging.{key}`: ") and text in str(error.value)


def test_a_partner_that_does_not_fit_is_found_before_the_first_step(folder: str, tmp_path: Path) -> None:
    content = {
        "state_dict": {"student.model.lm_head.weight": torch.zeros(3, 3)},
        "generator": spec_of(CausalLM(folder)),
    }
    torch.save(content, tmp_path / "other.ckpt")
    kept = Ends()
    with pytest.raises(ConfigError, match=r"\[3, 3\] vs \[16, 16\]"):
        trainer([CheckpointMerging(str(tmp_path / "other.ckpt")), kept], root=tmp_path).fit(
            student_of(folder), batches(1)
        )
    assert not hasattr(kept, "before")


def test_scores_need_validation_prompts(folder: str, partner: Path, tmp_path: Path) -> None:
    merging = CheckpointMerging(str(partner), metrics={"length": MeanLength()})
    with pytest.raises(ConfigError, match=r"Set `data.validation`"):
        trainer([merging], root=tmp_path).fit(student_of(folder), batches(1))


def test_a_validation_that_is_not_due_in_the_first_epoch_counts(folder: str, partner: Path, tmp_path: Path) -> None:
    merging = CheckpointMerging(str(partner), [0.5], metrics={"distinct": DistinctFirst()}, out=str(tmp_path / "out"))
    trainer([merging], root=tmp_path, check_val_every_n_epoch=2).fit(student_of(folder), batches(1), batches(1))
    assert json.loads((tmp_path / "out" / "merges.json").read_text())["rows"][0]["metrics"]["distinct"] > 0
    none = CheckpointMerging(str(partner), [0.5], metrics={"distinct": DistinctFirst()}, out=str(tmp_path / "no"))
    run = trainer([none], root=tmp_path, limit_val_batches=0)
    with pytest.raises(ConfigError, match="limit_val_batches"):
        run.fit(student_of(folder), batches(1), batches(1))
