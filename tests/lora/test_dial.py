"""The dial: an adapter whose scale is the guidance scale. Against peft's own scaling, plain fits, and merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tiny import tiny_adapted, tiny_folder
from tiny_fits import Recorder, batches, every_step, prompt_data, same, seed_everything, student_of, trainer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from cfg_distill.callbacks import ExactResume
from cfg_distill.checkpoints import student_weights
from cfg_distill.cli import main
from cfg_distill.distillation.dial import Dial
from cfg_distill.folders.card import write_card
from cfg_distill.folders.dials import remarks_on_dial
from cfg_distill.folders.history import history_of, of_student
from cfg_distill.generators import CausalLM, LoRA, open_generator
from cfg_distill.generators.lora import adapter_scaled
from cfg_distill.guidance import Guidance
from cfg_distill.losses import ReverseKL

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
TOKENS = torch.tensor([[[5, 6, 7, 8]], [[9, 4, 4, 5]]])
BATCH = (["w1 w2"], TOKENS, torch.ones_like(TOKENS, dtype=torch.bool))


def by_peft(base: str, **adapters: str) -> Any:
    """peft's own model with some adapters active at once."""
    names = list(adapters)
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), adapters[names[0]], names[0], True
    )
    for name in names[1:]:
        model.load_adapter(adapters[name], name, is_trainable=True)
    model.base_model.set_adapter(names)
    return model.eval()


def scaled(model: Any, **scales: float) -> Any:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, scale in scales.items():
                layer.set_scale(name, scale)
    return model


def log_probs(model: Any, base: str) -> torch.Tensor:
    """Of peft's model, at the positions of TOKENS."""
    prompt_S = CausalLM(base).tokenizer("w1 w2", return_tensors="pt")["input_ids"][0]
    ids_NS = torch.cat([prompt_S.expand(2, -1), TOKENS[:, 0]], dim=1)
    return model(ids_NS).logits[:, len(prompt_S) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_a_scaled_adapter_and_its_gradient_are_those_of_peft(tiny_model: str, tmp_path: Path, scale: float) -> None:
    student = tiny_adapted(tiny_model)
    student.save(tmp_path)
    with torch.no_grad():
        by_folder = open_generator(str(tmp_path), scale).load().logits(*BATCH)[:, 0].log_softmax(-1)
    # In float64: where attention saturates, the gradients of float32 are rounding.
    theirs = scaled(by_peft(tiny_model, one=str(tmp_path)), one=scale).double()
    student.model.double()
    with adapter_scaled(student.model, scale):
        ours_NTV = student.logits(*BATCH)[:, 0].log_softmax(-1)
        ours_NTV[..., 7].sum().backward()
    expected_NTV = log_probs(theirs, tiny_model)
    expected_NTV[..., 7].sum().backward()
    torch.testing.assert_close(ours_NTV, expected_NTV)
    torch.testing.assert_close(by_folder.double(), expected_NTV.detach(), atol=1e-3, rtol=1e-4)
    gradients = {name.replace(".one.", ".default."): p.grad for name, p in theirs.base_model.model.named_parameters()}
    own = {name: p.grad for name, p in student.model.named_parameters() if p.requires_grad}
    assert own and all(float(gradient.norm()) > 0 for gradient in own.values())
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, gradients[name])
    with torch.no_grad():  # the context ended: the adapter is itself again
        whole_NTV = student.logits(*BATCH)[:, 0].log_softmax(-1)
    assert torch.allclose(whole_NTV, ours_NTV) == (scale == 1)


def fit(folder: str, root: Path, alpha: float, gamma: float, callbacks: Any = (), **settings: Any) -> Any:
    seed_everything(0)
    student = CausalLM(folder, lora=LoRA(rank=4, alpha=alpha))
    module = student_of(folder, generator=student, guidance=Guidance(gamma), **settings)
    more = {"ckpt_path": settings.pop("ckpt", None)}
    trainer(list(callbacks), root=root, max_steps=3).fit(module, batches(3), **more)
    return module


def test_a_dial_that_stands_still_is_a_plain_fit_at_that_gamma(tiny_model: str, tmp_path: Path) -> None:
    """At s = 1/2 the adapter counts half, as with half of alpha, and gamma is 1 + (3 - 1) / 2."""
    dialled = fit(tiny_model, tmp_path, 8.0, 3.0, dial=Dial(0.5, 0.5))
    plain = fit(tiny_model, tmp_path, 4.0, 2.0)
    other = fit(tiny_model, tmp_path, 4.0, 3.0)
    ours, theirs, third = map(student_weights, (dialled, plain, other))
    assert same(ours, theirs) and not same(ours, third)
    assert dialled.guidance.scale == 3.0
    (scaling,) = {layer.scaling["default"] for layer in dialled.student.modules() if isinstance(layer, LoraLayer)}
    assert scaling == 2.0  # alpha / rank


def test_a_step_with_a_dial_multiplies_no_more(tiny_model: str) -> None:
    """The products of a whole fit of one step, counted by torch: rollout, teacher, loss and gradients."""
    counted = []
    for dial in (None, Dial(1.0, 1.0)):
        with FlopCounterMode(display=False) as counter:
            lora = CausalLM(tiny_model, lora=LoRA(rank=4))
            trainer([], max_steps=1).fit(student_of(tiny_model, generator=lora, dial=dial), batches(1))
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


class Drawn(Recorder):
    """The settings that were logged."""

    def __init__(self) -> None:
        super().__init__()
        self.dials: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.dials.append(float(trainer.callback_metrics["train/dial"]))


def test_a_resumed_fit_draws_the_same_settings(tiny_model: str, tmp_path: Path) -> None:
    def run(callbacks: list[Any], ckpt: Path | None = None) -> Any:
        seed_everything(0 if ckpt is None else 99)
        lora = CausalLM(tiny_model, lora=LoRA(rank=4))
        module = student_of(
            tiny_model, generator=lora, guidance=Guidance(3.0), dial=Dial(), losses={"kl": ReverseKL()}, seed=7
        )
        made = trainer([ExactResume(), *callbacks], root=tmp_path, max_epochs=2)
        made.fit(module, datamodule=prompt_data(tmp_path), ckpt_path=None if ckpt is None else str(ckpt))
        return module

    whole, rest = Drawn(), Drawn()
    first = run([every_step(tmp_path), whole])
    again = run([rest], tmp_path / "saved" / "step=2.ckpt")
    assert len(set(whole.dials)) == 6 and rest.dials == whole.dials[2:]
    assert whole.dials == pytest.approx([Dial().at(7, step) for step in range(6)])
    assert same(student_weights(first), student_weights(again))


def test_the_distribution_of_the_dial() -> None:
    drawn = torch.tensor([Dial().at(3, step) for step in range(2000)])
    assert drawn.min() > 0 and drawn.max() <= 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.02) and drawn.var() == pytest.approx(1 / 12, abs=0.005)
    leaning = torch.tensor([Dial(0.2, 0.8, power=2.0).at(3, step) for step in range(2000)])
    assert leaning.min() > 0.2 and leaning.max() <= 0.8
    assert leaning.mean() == pytest.approx(0.2 + 0.6 / 3, abs=0.02)


def said(module: Any) -> str:
    return "\n".join(map(str, module.problems()))


def test_what_a_dial_cannot_work_with(tiny_model: str) -> None:
    plain = student_of(tiny_model, guidance=Guidance(1.0, schedule="linear", final_scale=2.0), dial=Dial(0.5, 0.4, 0.0))
    found = said(plain)
    assert "Key `dial`: expected a LoRA student, whose adapter is scaled, but all weights are trained." in found
    assert "Key `guidance.scale`: expected a number above 1, up to which the dial goes, but got 1." in found
    assert "Key `guidance.schedule`: expected constant" in found
    assert "Key `dial.high`: expected a number above 0, from `dial.low` to 1, but got 0.4." in found
    assert "Key `dial.power`: expected a number above 0" in found
    lora = CausalLM(tiny_model, lora=LoRA(rank=2))
    assert not student_of(tiny_model, generator=lora, dial=Dial()).problems()
    for scale, expected in (
        (-1.0, "from 0 to 1000"),
        (float("nan"), "from 0 to 1000"),
        (0.5, "Raise it, or leave the dial out."),
    ):
        (problem,) = student_of(tiny_model, generator=lora, guidance=Guidance(scale), dial=Dial()).problems()
        assert problem.path == "guidance.scale" and expected in str(problem)


# Folders: the card, sampling at a setting, the difference of two students


@pytest.fixture(scope="module")
def students(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dialled quality student, and a diversity student that began with it, which has a larger adapter."""
    root = tmp_path_factory.mktemp("students")
    for name, rank, start in (("quality", 4, ""), ("diversity", 6, str(root / "quality"))):
        lora, saved = LoRA(rank=rank, alpha=2.0 * rank), root / "fits" / name
        module = student_of(
            tiny_model, generator=CausalLM(tiny_model, lora=lora), guidance=Guidance(3.0), dial=Dial(), start=start,
            losses={"kl": ReverseKL()}, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
        )  # fmt: skip
        trainer([every_step(saved)], saved, max_steps=3).fit(module, batches(3))
        words = ["export", "--checkpoint", str(saved / "saved" / "step=3.ckpt")]
        assert main([*words, "--out", str(root / name)]) == 0
    relative = ["--relative-to", str(root / "quality")]
    assert main([*words, "--out", str(root / "difference"), *relative]) == 0
    assert main([*words, "--out", str(root / "whole"), "--merged"]) == 0
    return root


def test_the_card_says_that_it_is_dialled(students: Path) -> None:
    card = (students / "quality" / "README.md").read_text()
    assert "with a dial: its scale is the scale of guidance" in card and "of scale 1 + 2 s." in card
    assert "| 3, which is the adapter's at scale 1 (gamma_max of its dial) |" in card
    made = history_of(students / "quality")
    assert made is not None and made.dialled and made.guidance == 3.0
    whole = history_of(students / "whole")
    assert (
        whole is not None and not whole.dialled and "with a dial" not in (students / "whole" / "README.md").read_text()
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 0.7)])
def test_the_card_and_the_remark_say_what_was_trained(tmp_path: Path, low: float, high: float) -> None:
    name = str(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    card = {"guidance": 3.0, "dialled": True, "dial_low": low, "dial_high": high}
    write_card(tmp_path, "a", of_student("gpt2", card, tmp_path / "a" / "b.ckpt", 1, "raw"))
    assert f"At scale s, from {low:g} to {high:g}, the model samples" in (tmp_path / "README.md").read_text()
    for setting in (None, 0.0, 0.2, 0.5, 0.9, 1.5):
        remarks = remarks_on_dial(name, setting)
        assert bool(remarks) == (setting is not None or high < 1)
        scale = 1.0 if setting is None else setting
        beyond = scale > high or 0 < scale < low
        assert all((f"It was trained from {low:g} to {high:g}." in each.text) == beyond for each in remarks)
        assert all(f"at {scale:g}, which is guidance {1 + 2 * scale:g}." in each.text for each in remarks)


def test_the_guidance_of_a_merge(tiny_model: str, students: Path, tmp_path: Path) -> None:
    quality, whole, difference, plain = (
        str(students / each) for each in ("quality", "diversity", "difference", "whole")
    )
    for number, (method, models, weights, more, expected) in enumerate(
        (
            ("liti", [quality], ["0.5"], [], 2.0),
            ("liti", [quality], ["1"], [], 3.0),
            ("liti", [quality], ["0"], [], 1.0),
            ("liti", [whole], ["0.5"], ["--start", quality], 3.0),  # between two students of one gamma
            ("liti", [plain], ["0.5"], ["--start", tiny_model], None),  # no dial: of no known guidance
            ("liti", [plain], ["1"], ["--start", tiny_model], 3.0),
            ("lerp", [plain, tiny_model], ["0.5", "0.5"], [], None),
            ("lerp", [quality, whole], ["0.5", "0.5"], [], 3.0),
            ("sum", [quality, difference], ["0.5", "0.3"], [], 2.0),
            ("sum", [quality, whole], ["0.5", "0.3"], [], None),
        )
    ):
        out = tmp_path / str(number)
        words = ["merge", "--method", method, "--models", *models, "--weights", *weights, *more, "--out", str(out)]
        assert main(words) == 0
        made, text = history_of(out), (out / "README.md").read_text()
        assert made is not None and made.guidance == expected, words
        assert made.dialled == (method == "lerp" and expected is not None)
        assert (f"guidance of scale {expected or 0:g}" in text) == (not made.dialled and expected not in (None, 1.0))
        assert made.distilled == (expected != 1.0)


def test_generate_and_evaluate_turn_the_dial(
    students: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    quality = str(students / "quality")
    ask = ["--prompt", "w1 w2", "--samples", "1", "--max-new-tokens", "12", "--temperature", "0"]
    outputs = {}
    for dial in ("0", "0.5", "1", "2"):
        assert main(["generate", "--model", quality, "--dial", dial, *ask]) == 0
        outputs[dial], err = capsys.readouterr()
        assert f"Option `--dial`: `{quality}` at {dial}, which is guidance {1 + 2 * float(dial):g}." in err
        assert ("It was trained from 0 to 1." in err) == (dial == "2")
    assert main(["generate", "--model", tiny_model, *ask]) == 0
    assert capsys.readouterr().out == outputs["0"]
    assert main(["generate", "--model", quality, *ask]) == 0
    assert capsys.readouterr().out == outputs["1"] != outputs["0"]
    (tmp_path / "prompts.txt").write_text("w1 w2\nw3\n")
    (tmp_path / "metrics.yaml").write_text(
        "length: {class_path: tiny_fits.MeanLength}\ndistinct: {class_path: tiny_fits.DistinctFirst}\n"
    )
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--metrics", str(tmp_path / "metrics.yaml"), "--samples", "2"]
    words += ["--max-new-tokens", "8", "--out", str(tmp_path / "out")]
    models = [f"{tiny_model}@2", quality]
    assert main(["evaluate", "--model", *models, "--dial", "0.5", "1", *words]) == 0
    systems = json.loads((tmp_path / "out" / "front.json").read_text())["systems"]
    assert [(each["guidance"], each["dial"], each["relative_cost"]) for each in systems] == [
        (2.0, None, 2.0),
        (1.0, 0.5, 1.0),
        (1.0, None, 1.0),
    ]
    assert [each["name"] for each in systems] == ["tiny, guidance 2", "quality, dial 0.5", "quality, dial 1"]
    assert "overshoots" not in capsys.readouterr().err


def test_a_setting_of_the_dial_that_cannot_be(students: Path, tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", "--model", tiny_model, "--dial", "-1", "--prompt", "w1"]) == 2
    err = capsys.readouterr().err
    assert "`--dial`: expected an adapter folder" in err and "`--dial`: expected a number of at least 0" in err
    words = ["evaluate", "--prompts", str(students / "quality" / "README.md"), "--model", tiny_model, "--dial", "1"]
    assert main(words) == 2
    assert "`--dial`: expected an adapter among the models" in capsys.readouterr().err
    tiny_adapted(tiny_model).save(students / "plain")
    assert main(["generate", "--model", str(students / "plain"), "--dial", "0.5", "--prompt", "w1"]) == 0
    assert "was not trained with a dial" in capsys.readouterr().err


@pytest.mark.parametrize(("guidance", "diversity"), [(1.0, 0.5), (0.5, 0.25), (1.0, 1.0)])
def test_two_dials_on_one_base(
    students: Path, tiny_model: str, tmp_path: Path, guidance: float, diversity: float
) -> None:
    """peft with the quality adapter and the difference at two scales, and our merges at the same weights."""
    quality, whole, less = (str(students / name) for name in ("quality", "diversity", "difference"))
    both = by_peft(tiny_model, quality=quality, difference=less)
    config = json.loads((students / "difference" / "adapter_config.json").read_text())
    assert config["r"] == 10  # 4 and 6
    with torch.no_grad():
        expected = log_probs(scaled(both, quality=guidance, difference=diversity), tiny_model)
        weights = ["--weights", str(guidance), str(diversity)]
        out = tmp_path / "sum"
        assert main(["merge", "--method", "sum", "--models", quality, less, *weights, "--out", str(out)]) == 0
        merged = open_generator(str(out)).load().logits(*BATCH)[:, 0].log_softmax(-1)
        torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)
        if guidance == 1:  # on the line between the students
            line = ["--models", quality, whole, "--weights", str(1 - diversity), str(diversity)]
            assert main(["merge", *line, "--out", str(tmp_path / "line")]) == 0
            on_line = open_generator(str(tmp_path / "line")).load().logits(*BATCH)[:, 0].log_softmax(-1)
            torch.testing.assert_close(on_line, expected, atol=1e-4, rtol=0)
            made = history_of(tmp_path / "line")
            assert made is not None and made.dialled
        assert (expected - log_probs(scaled(both, quality=0.0, difference=0.0), tiny_model)).abs().max() > 0.1


def test_a_difference_of_two_bases_and_others_that_cannot_be(
    students: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["export", "--checkpoint", str(students / "fits" / "diversity" / "saved" / "step=3.ckpt")]
    other = tiny_folder(tmp_path / "other", seed=1)
    tiny_adapted(other).save(tmp_path / "stranger")
    quality = str(students / "quality")
    for given, expected in (
        ([str(tmp_path / "stranger")], f"`--relative-to`: expected an adapter of `{tiny_model}`"),
        ([tiny_model], "`--relative-to`: expected an adapter of"),
        ([quality, "--merged"], "`--relative-to`: expected without `--merged`"),
        ([str(tmp_path / "none" / "x" / "y")], "`--relative-to`: expected a model folder"),
        ([quality, "--out", quality, "--overwrite"], "is the input"),
    ):
        out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
        assert main([*words, *out, "--relative-to", *given]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
