"""Start samples, codes, openings, a dial, running means: two processes equal one, a resumed run an unbroken one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from forked import in_ranks
from tiny import tiny_folder
from tiny_fits import every_step, snapshot, student_of, trainer

from cfg_distill.callbacks import ExactResume
from cfg_distill.data import PromptData
from cfg_distill.distillation.dial import Dial
from cfg_distill.distillation.off_policy import of_start
from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, Guidance, LoRA
from cfg_distill.losses import MinAvgOut, PolicyGradient, ReverseKL
from cfg_distill.references import StartSamples
from cfg_distill.rewards import AvgOutScore, CodeInformation, DiversityTarget, PairedContrast
from cfg_distill.sampling import Codes, Conditioner, Labels, Opening, Sampling, Seeds

WORDS = [f"w{a} w{b}" for a in range(3) for b in range(8)]


def student(folder: str, root: Path, codes: bool = True, **settings: Any) -> Any:
    """All parts with state in one mix: codes and openings, or labels of the wanted diversity and a dial of guidance."""
    embedder = NGramCounts(buckets=64)
    target: Any = StartSamples(samples=3) if codes else [0.2, 0.9]
    rewards = {"target": DiversityTarget(embedder, target), "rare": AvgOutScore()}
    if codes:
        rewards["code"] = CodeInformation(embedder, StartSamples(samples=4), str(root / "train.txt"), values=2)
        rewards["paired"] = PairedContrast(embedder)
    losses = {name: PolicyGradient(reward, weight=0.5) for name, reward in rewards.items()}
    words: dict[str, Any] = {"values": 2, "template": "{label} {prompt}", "words": ["w10", "w11"]}
    conditioner: Conditioner = Codes(**words) if codes else Labels(**words)
    dialled = {"generator": CausalLM(folder, lora=LoRA(rank=4)), "guidance": Guidance(3.0), "dial": Dial()}
    mix = {"kl": ReverseKL(), "average": MinAvgOut(weight=1.0), "siblings": MinAvgOut(weight=1.0, scope="siblings")}
    return student_of(
        folder,
        **{
            "losses": mix | losses,
            "sampling": Sampling(samples=4, max_new_tokens=8),
            "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.3),
            "conditioner": conditioner,
            "micro_batch": 4,
            "seed": 3,
        }
        | ({"opening": Opening(2)} if codes else dialled)
        | settings,
    )


class Asked(L.Callback):
    """What student and teacher were asked, and the labels."""

    def __init__(self) -> None:
        self.student: list[Any] = []
        self.teacher: list[Any] = []
        self.labels: list[torch.Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for name in ("student", "teacher"):
            own = getattr(pl_module, name)
            predict = own.predictions

            def noted(prompts: Any, *rest: Any, seen: Any = getattr(self, name), predict: Any = predict) -> Any:
                seen.append(list(prompts))
                return predict(prompts, *rest)

            own.predictions = noted

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self.labels.append(outputs["samples"].rollout.labels_BG)


def fit(
    folder: str, root: Path, world: int = 1, after: int = 0, codes: bool = True, saves: bool = False
) -> dict[str, Any]:
    module = student(folder, root, codes)
    data = PromptData(str(root / "train.txt"), batch_size=8 // world)
    place = root / f"{world} {codes}"
    place.mkdir(exist_ok=True)
    ddp = {"devices": world, "strategy": "ddp"} if world > 1 else {}
    callbacks = [ExactResume(), *([every_step(place)] if saves else [])]
    ckpt = str(place / "saved" / f"step={after}.ckpt") if after else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(callbacks, place, max_epochs=2, **ddp).fit(module, datamodule=data, ckpt_path=ckpt)
    state = {name: each.clone() for name, each in module.state_dict().items() if "past" in name}
    return {"weights": snapshot(module), "state": state}


def work(rank: int, folder: str, root: str) -> None:
    found = {str(codes): fit(folder, Path(root), 2, codes=codes) for codes in (True, False)}
    torch.save(found, f"{root}/{rank}.pt")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("state")
    (root / "train.txt").write_text("\n".join(WORDS))
    tiny_folder(root / "model")
    return root


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[bool, dict[str, Any]]:
    """One process, unbroken."""
    return {codes: fit(str(root / "model"), root, codes=codes, saves=True) for codes in (True, False)}


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("weights", "state"):
        assert found[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            torch.testing.assert_close(found[part][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(root: Path, whole: dict[bool, dict[str, Any]]) -> None:
    folder = str(root / "model")
    in_ranks(work, folder, str(root))
    for rank in range(2):
        found = torch.load(root / f"{rank}.pt", weights_only=True)
        for codes in (True, False):
            close(found[str(codes)], whole[codes])
    state = whole[True]["state"]
    assert all(state[f"losses.{name}.past.value"].any() for name in ("average", "siblings"))
    assert (
        state["losses.rare.reward.past.value"].shape == (1, 16) and state["losses.target.reward.past.value"].abs() > 0
    )
    assert whole[False]["state"]["losses.target.reward.past.value"].shape == (2,)


@pytest.mark.parametrize("codes", [True, False])
def test_a_resumed_run_equals_an_unbroken_one(root: Path, whole: dict[bool, dict[str, Any]], codes: bool) -> None:
    found = fit(str(root / "model"), root, after=4, codes=codes)
    for part in ("weights", "state"):
        assert all(torch.equal(found[part][name], value) for name, value in whole[codes][part].items())


@pytest.mark.filterwarnings("ignore:Total length")  # no validation
def test_the_student_reads_labels_and_the_teacher_does_not(root: Path, tmp_path: Path) -> None:
    module, asked = student(str(root / "model"), root, micro_batch=2), Asked()
    data = PromptData(str(root / "train.txt"), batch_size=2, shuffle=False)
    trainer([asked], tmp_path, max_steps=1).fit(module, datamodule=data)
    (labels_BG,) = asked.labels
    words = [("w10", "w11")[label] for label in labels_BG.flatten().tolist()]
    expected = [f"{word} {WORDS[n // 4]}" for n, word in enumerate(words)]
    assert [str(prompt) for prompts in asked.student for prompt in prompts] == expected
    assert [prompts for prompts in asked.teacher if prompts != [None]] == [[WORDS[n // 2]] for n in range(4)]
    assert sorted(words) == ["w10"] * 4 + ["w11"] * 4


@pytest.mark.filterwarnings("ignore:Total length")  # no validation
def test_samples_of_a_step_begin_as_samples_of_the_start_model(root: Path, tmp_path: Path) -> None:
    class Seen(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
            self.samples = outputs["samples"]

    seen, module = Seen(), student(str(root / "model"), root)
    data = PromptData(str(root / "train.txt"), batch_size=4, shuffle=False)
    trainer([seen], tmp_path, max_steps=1).fit(module, datamodule=data)
    drawn = seen.samples.rollout
    # The start model of the first step of seed 3, by other random numbers than those of the student's samples.
    start = of_start(module, seen.samples.asked, Seeds((3, 1, 0, 1), range(4)), guided=False)
    assert drawn.opening == 2 and seen.samples.start == start.outputs
    assert torch.equal(drawn.beginning(2), start.rollout.beginning(2))
    behind = [
        each.beginning(8)[..., 2:] for each in (drawn, start.rollout)
    ]  # the same model still, so that numbers decide
    assert behind[0].shape != behind[1].shape or not torch.equal(*behind)


def test_labels_that_mean_nothing_are_refused(root: Path, tmp_path: Path) -> None:
    data = PromptData(str(root / "train.txt"), batch_size=2)
    conditioner = Codes(values=2, words=["strange", "stranger"])  # both unknown to the tokenizer
    with pytest.raises(
        ConfigError, match=r"`model.conditioner`: expected 2 labels that .* tell apart, but it reads all of them alike"
    ):
        trainer([], tmp_path, max_steps=1).fit(
            student(str(root / "model"), root, conditioner=conditioner), datamodule=data
        )
    found = [str(each) for each in student(str(root / "model"), root, conditioner=None).problems()]
    assert any("`model.conditioner` for `losses.code.init_args.reward`: expected 2 labels" in each for each in found), (
        found
    )
    found = [str(each) for each in student(str(root / "model"), root, off_policy=True).problems()]
    assert any(each.startswith("Key `conditioner`: expected none under `model.off_policy`") for each in found), found
    assert any(each.startswith("Key `opening`: expected none under `model.off_policy`") for each in found), found
    found = [str(each) for each in student(str(root / "model"), root, opening=Opening(8)).problems()]
    text = (
        "Key `opening.tokens`: expected fewer than the 8 of `model.sampling.max_new_tokens`, but got 8: nothing is left"
    )
    assert any(each.startswith(text) for each in found), found
    found = [str(each) for each in student(str(root / "model"), root, opening=None).problems()]
    assert any("`model.opening` for `losses.paired.init_args.reward`: expected an opening" in each for each in found)
    found = [str(each) for each in student(str(root / "model"), root, conditioner=Codes(values=3)).problems()]
    assert any(each.startswith("Key `conditioner.init_args.values`: expected a divisor of") for each in found), found
