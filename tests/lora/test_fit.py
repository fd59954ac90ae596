"""Fits of LoRA students: what moves, what a checkpoint, an average and a merge hold, and that a fit goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_fits import DistinctFirst, Recorder, every_step, prompt_data, same, seed_everything, student_of, trainer
from transformers import AutoModelForCausalLM

from cfg_distill import CFGDistillation
from cfg_distill.callbacks import CheckpointMerging, ExactResume, StudentEMA
from cfg_distill.checkpoints import spec_of, student_weights
from cfg_distill.cli import main
from cfg_distill.distillation.execution import Execution
from cfg_distill.distillation.module import fingerprint
from cfg_distill.errors import ConfigError
from cfg_distill.folders.adapters import AdapterFolder
from cfg_distill.generators import CausalLM, LoRA, open_generator
from cfg_distill.generators.lora import adapter_of
from cfg_distill.merging import merge_adapters

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


def lora_student(folder: str, lora: LoRA | None = None, **settings: Any) -> CFGDistillation:
    return student_of(folder, generator=CausalLM(folder, lora=lora or LoRA(rank=4)), **settings)


def fit(folder: str, root: Path, callbacks: list[Any], ckpt: Path | None = None, **settings: Any) -> Any:
    """Two epochs of three batches, with a validation in the middle of each."""
    module = lora_student(folder, **settings)
    fitted = trainer(callbacks, root=root, max_epochs=2, val_check_interval=2)
    fitted.fit(module, datamodule=prompt_data(root), ckpt_path=None if ckpt is None else str(ckpt))
    return module


@pytest.fixture(scope="module")
def run(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Recorder]:
    """A fit with an average, and a checkpoint of each step."""
    root = tmp_path_factory.mktemp("run")
    seed_everything(0)
    recorder = Recorder()
    module = fit(tiny_model, root, [ExactResume(), StudentEMA(decay=0.5), every_step(root), recorder])
    return root, module, recorder


def read(root: Path, step: int = 6) -> dict[str, Any]:
    return torch.load(root / "saved" / f"step={step}.ckpt", weights_only=True)


def test_a_new_adapter_depends_on_the_seed_alone(tiny_model: str) -> None:
    """Not on what was drawn before: Lightning seeds anew in many processes, so one would begin elsewhere than two."""

    def new(seed: int, drawn: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(drawn)
        module = lora_student(tiny_model, seed=seed)
        before = torch.get_rng_state()
        module.configure_model()
        assert torch.equal(torch.get_rng_state(), before)
        return {name: own.a_RI.detach().clone() for name, own in adapter_of(module.student.model).items()}

    assert same(new(0, 1), new(0, 2)) and not same(new(0, 1), new(1, 1))


def test_only_the_adapter_moves(tiny_model: str, run: tuple[Path, Any, Recorder]) -> None:
    _, module, recorder = run
    first, last = recorder.steps[0], recorder.steps[-1]
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {name for name in first if "lora_" in name}
    assert fingerprint(module.teacher) == fingerprint(CausalLM(tiny_model).load())


def test_checkpoints_hold_the_adapter_only(run: tuple[Path, Any, Recorder]) -> None:
    root, module, _ = run
    checkpoint = read(root)
    weights = {name for name in checkpoint["state_dict"] if name.startswith(("student.", "teacher."))}
    averages = checkpoint["callbacks"]["StudentEMA"]["weights"]
    assert weights == set(averages) == set(student_weights(module))
    assert all("lora_" in name for name in weights)
    held = sum(tensor.nbytes for tensor in averages.values())
    assert held == sum(a.nbytes + b.nbytes for a, b, _ in adapter_of(module.student.model).values())
    assert checkpoint["generator"]["init_args"]["lora"] == {
        "rank": 4,
        "alpha": 32.0,
        "targets": "all-linear",
        "dropout": 0.0,
    }


def test_validation_sees_the_average(run: tuple[Path, Any, Recorder]) -> None:
    _, _, recorder = run
    before, during, after = recorder.steps[1], recorder.validated[0], recorder.after[0]
    assert same(before, after) and not same(before, during)
    assert all(torch.equal(before[name], during[name]) for name in before if "lora_" not in name)


def test_a_fit_goes_on_to_the_same_adapter(tiny_model: str, run: tuple[Path, Any, Recorder], tmp_path: Path) -> None:
    root, module, _ = run
    seed_everything(99)
    callbacks = [ExactResume(), StudentEMA(decay=0.5)]
    resumed = fit(tiny_model, tmp_path, callbacks, ckpt=root / "saved" / "step=2.ckpt")
    assert same(student_weights(module), student_weights(resumed))


def test_a_checkpoint_of_another_adapter_does_not_fit(tiny_model: str, run: tuple[Path, Any, Recorder]) -> None:
    root, _, _ = run
    other = lora_student(tiny_model, LoRA(rank=4, targets=["q_proj"]))
    other.configure_model()
    with pytest.raises(
        ConfigError, match=r"this run does not have student.model.model.layers.0.*lora_A.* and \d+ more"
    ):
        other.load_state_dict(read(root)["state_dict"])
    broken = {name: tensor for name, tensor in read(root)["state_dict"].items() if "q_proj.lora_A" not in name}
    own = lora_student(tiny_model)
    own.configure_model()
    with pytest.raises(ConfigError, match=r"it lacks student.model.model.layers.0.self_attn.q_proj.lora_A"):
        own.load_state_dict(broken)


@pytest.mark.parametrize("chunk", [5, 64])
def test_chunked_losses_give_the_gradients_of_whole_logits(tiny_model: str, chunk: int) -> None:
    gradients = []
    for logits_chunk in (0, chunk):
        seed_everything(3)
        module = lora_student(tiny_model, execution=Execution(logits_chunk=logits_chunk))
        recorder = Gradients()
        trainer([recorder], max_steps=1).fit(module, prompt_batches())
        gradients.append(recorder.seen)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def prompt_batches() -> Any:
    from tiny_fits import batches

    return batches(1)


class Gradients(Recorder):
    """The gradients of the first step."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.seen = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_of_the_adapter_is_on_while_it_trains_and_of_the_base_only_when_asked(
    tiny_model: str, dropout: bool
) -> None:
    module = lora_student(tiny_model, LoRA(rank=2, dropout=0.1), dropout=dropout)
    assert not module.problems()
    module.configure_model()
    module.train()
    layers = [m for name, m in module.student.named_modules() if name.endswith("lora_dropout.default")]
    assert layers and all(layer.training and layer.p == 0.1 for layer in layers)
    others = [m for name, m in module.student.named_modules() if "lora_dropout" not in name]
    assert all(module.training == dropout for module in others)
    module.eval()
    assert not any(layer.training for layer in layers)


# Export


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_exports_are_adapters_or_whole_models(
    tiny_model: str, run: tuple[Path, Any, Recorder], tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    root, module, _ = run
    words = ["export", "--checkpoint", str(root / "saved" / "step=6.ckpt"), "--weights", kind]
    assert main([*words, "--out", str(tmp_path / "adapter")]) == 0
    assert f"an adapter of {Path(tiny_model).resolve()}" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "whole"), "--merged"]) == 0
    assert "merged into its base" in capsys.readouterr().out
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    by_peft = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, by_peft[name])
    exported = AdapterFolder(tmp_path / "adapter").adapter()
    live = adapter_of(module.student.model)
    assert all(torch.equal(exported[name].b_OR, live[name].b_OR) for name in live) == (kind == "raw")
    for folder in ("adapter", "whole"):  # an inference engine of another user reads all of it or nothing
        assert len({file.stat().st_mode for file in (tmp_path / folder).iterdir()}) == 1
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    assert weights.stat().st_size < sum(a.nbytes + b.nbytes for a, b, _ in live.values()) + 8192


def test_only_adapters_are_merged_into_a_base(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    student = CausalLM(tiny_model).load()
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    torch.save({"state_dict": state, "generator": spec_of(student)}, tmp_path / "whole.ckpt")
    assert main(["export", "--checkpoint", str(tmp_path / "whole.ckpt"), "--out", str(tmp_path / "x"), "--merged"]) == 2
    assert "`--merged`: the student" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_student_starts_from_an_exported_adapter(
    tiny_model: str, run: tuple[Path, Any, Recorder], tmp_path: Path
) -> None:
    root, module, _ = run
    assert (
        main(
            [
                "export",
                "--checkpoint",
                str(root / "saved" / "step=6.ckpt"),
                "--out",
                str(tmp_path / "quality"),
                "--weights",
                "raw",
            ]
        )
        == 0
    )
    second = lora_student(tiny_model, LoRA(rank=6, alpha=48.0), start=str(tmp_path / "quality"))
    second.configure_model()
    batch = (["w1"], torch.tensor([[[5, 6, 7]]]), torch.ones(1, 1, 3, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(second.student.logits(*batch), module.student.logits(*batch))
        torch.testing.assert_close(second.teacher.logits(*batch), module.teacher.logits(*batch))
    wrong = lora_student(tiny_model, start=tiny_model)
    with pytest.raises(ConfigError, match="holds whole weights"):
        wrong.configure_model()


# Merging at the end of a fit


@pytest.mark.parametrize(
    ("method", "partner_kind"),
    [
        ("slerp", "folder"),
        ("liti", ""),
        *(pytest.param(method, "checkpoint", marks=pytest.mark.slow) for method in ("lerp", "slerp")),
        pytest.param("lerp", "folder", marks=pytest.mark.slow),
    ],
)
def test_merges_at_the_end_of_a_fit(
    tiny_model: str, run: tuple[Path, Any, Recorder], tmp_path: Path, method: str, partner_kind: str
) -> None:
    root, _, _ = run
    partner = "" if method == "liti" else str(root / "saved" / "step=6.ckpt")
    if partner and partner_kind == "folder":
        assert main(["export", "--checkpoint", partner, "--out", str(tmp_path / "partner"), "--weights", "raw"]) == 0
        partner = str(tmp_path / "partner")
    seed_everything(5)
    merging = CheckpointMerging(
        partner, [0.0, 0.25, 1.0], method, metrics={"distinct": DistinctFirst()}, out=str(tmp_path / "merged")
    )
    module = fit(tiny_model, tmp_path, [merging, Recorder()], lora=LoRA(rank=3, alpha=5.0))
    own = adapter_of(module.student.model)
    assert {factors.rank for factors in own.values()} == {3}
    if method == "liti":
        expected = merge_adapters("liti", [own], [0.25])
    else:
        other = lora_student(tiny_model)
        other.configure_model()
        other.load_state_dict(read(root)["state_dict"])
        expected = merge_adapters(method, [adapter_of(other.student.model), own], [0.75, 0.25])
    merged, whole = (AdapterFolder(tmp_path / "merged" / name).adapter() for name in ("0.25", "1"))
    for name, factors in expected.items():
        torch.testing.assert_close(merged[name].delta_OI(), factors.delta_OI())
        torch.testing.assert_close(whole[name].delta_OI(), own[name].delta_OI())
    if method == "liti":  # the start alone: the base, as an adapter that changes nothing
        assert not any(
            factors.delta_OI().any() for factors in AdapterFolder(tmp_path / "merged" / "0").adapter().values()
        )
    rows = json.loads((tmp_path / "merged" / "merges.json").read_text())["rows"]
    assert len(rows) == 3 and all(0 <= row["metrics"]["distinct"] <= 1 for row in rows)
    assert not open_generator(str(tmp_path / "merged" / "0.25")).problems()


def test_partners_that_do_not_fit_an_adapter(tiny_model: str, tmp_path: Path) -> None:
    whole = student_of(tiny_model)
    state = {f"student.{name}": tensor for name, tensor in whole.student.load().state_dict().items()}
    torch.save({"state_dict": state, "generator": whole.generator_spec}, tmp_path / "whole.ckpt")
    partners = {tiny_model: "holds whole weights", str(tmp_path / "whole.ckpt"): "holds a whole model"}
    for partner, message in partners.items():
        with pytest.raises(ConfigError, match=message):
            fit(tiny_model, tmp_path, [CheckpointMerging(partner, out=str(tmp_path / "merged"))])
