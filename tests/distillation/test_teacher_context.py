"""A teacher that reads more than the student: against the teacher run by hand on the richer prompt, with transformers alone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny import tiny_folder
from tiny_fits import FirstToken, student_of, trainer

from cfg_distill.cli import main
from cfg_distill.data import PromptData, read_prompts
from cfg_distill.distillation.off_policy import to_learn_from
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, Prompt
from cfg_distill.guidance import Guidance, guided_logits
from cfg_distill.losses import CrossEntropy, ForwardKL, PolicyGradient, ReverseKL
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw

TEMPLATE = (
    "{% for m in messages %}{{ ('w10 ' if m['role'] == 'system' else 'w11 ') + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
RICHER = Prompt("w1 w2", teacher_prompt="w7 {prompt} w8")
INSTEAD = Prompt("w3", teacher_prompt="w5 w6 w4")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chat")
    path = tiny_folder(folder, scale=6.0)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return path


def test_what_the_teacher_reads() -> None:
    prompts = ["w1", RICHER, Prompt("w2", system="w9", teacher_prompt="w3 {prompt}")]
    assert Guidance().of_teacher(prompts[:1]) == ["w1"]
    assert Guidance().of_teacher(prompts[1:]) == [Prompt("w7 w1 w2 w8"), Prompt("w3 w2", system="w9")]
    assert Guidance(teacher_system="w5").of_teacher(prompts) == [
        Prompt("w1", system="w5"),
        Prompt("w7 w1 w2 w8", system="w5"),
        Prompt("w3 w2", system="w5"),
    ]
    assert Prompt("w1") != Prompt("w1", teacher_prompt="w2") and len({Prompt("w1"), Prompt("w1", "w2")}) == 2


@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_the_teacher_is_the_same_model_on_the_richer_prompt(chat: str, gamma: float) -> None:
    """By hand: transformers' own model on the texts that the template makes, mixed by the formula."""
    student = student_of(
        chat, guidance=Guidance(gamma, teacher_system="w9"), sampling=Sampling(samples=2, max_new_tokens=5)
    )
    student.configure_model()
    prompts = [RICHER, INSTEAD, "w1"]
    samples = student.draw(prompts, seed=3)
    found = student.score(samples)
    texts = ["w10 w9 w11 w7 w1 w2 w8 <s>", "w10 w9 w11 w5 w6 w4 <s>", "w10 w9 w11 w1 <s>"]
    plain = CausalLM(chat).load()

    def by_hand(text: str, tokens_T: torch.Tensor) -> torch.Tensor:
        ids = torch.cat(
            [plain.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0], tokens_T]
        )
        with torch.no_grad():
            return plain.model(ids[None]).logits[0, -len(tokens_T) - 1 : -1]

    for row in range(6):
        mask_T = samples.rollout.mask_NKT[row, 0]
        tokens_T = samples.rollout.tokens_NKT[row, 0][mask_T]
        asked, dropped = by_hand(texts[row // 2], tokens_T), by_hand("w11 <s>", tokens_T)
        expected = guided_logits(asked, dropped, gamma) if gamma != 1 else asked
        teacher = found.teacher_NKTV[row, 0][mask_T].log_softmax(-1)
        torch.testing.assert_close(teacher, expected.log_softmax(-1), atol=1e-4, rtol=1e-4)
        own = by_hand(["w11 w1 w2 <s>", "w11 w3 <s>", "w11 w1 <s>"][row // 2], tokens_T)
        torch.testing.assert_close(
            found.student_NKTV[row, 0][mask_T].log_softmax(-1), own.log_softmax(-1), atol=1e-4, rtol=1e-4
        )


def test_contexts_are_read_once_per_prompt(chat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = student_of(
        chat, guidance=Guidance(1.0, teacher_system="w9"), sampling=Sampling(samples=4, max_new_tokens=5)
    )
    module.configure_model()
    samples = module.draw([RICHER, INSTEAD], seed=3)
    assert module.teacher is not None
    rows: list[tuple[int, int]] = []
    module.teacher.model.base_model.register_forward_pre_hook(
        lambda _, args, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    module.score(samples)
    length = samples.rollout.tokens_NKT.shape[-1]
    assert rows[-2:] == [(2, 8), (8, length - 1)]  # the contexts, then the samples: 8 positions of the longest context


def test_the_off_policy_teacher_draws_under_its_context(chat: str) -> None:
    guidance = Guidance(1.0, teacher_system="w9")
    module = student_of(chat, guidance=guidance, losses={"kl": ForwardKL()}, off_policy=True)
    module.configure_model()
    samples = to_learn_from(module, [RICHER], 5)
    wanted = draw(CausalLM(chat).load(), [Prompt("w7 w1 w2 w8", system="w9")], module.sampling, None, 5)
    assert samples.outputs == wanted.outputs and samples.prompts == ["w1 w2"] and samples.asked == [RICHER]


def test_a_student_learns_to_sample_as_under_the_context(chat: str, tmp_path: Path) -> None:
    """Context distillation alone, gamma 1: the KL to the base under the context falls."""
    (tmp_path / "train.jsonl").write_text('{"prompt": "w1 w2", "teacher_prompt": "w7 {prompt} w8"}\n' * 2)
    module = student_of(
        chat, guidance=Guidance(1.0, teacher_system="w9 w4"), losses={"kl": ReverseKL()},
        sampling=Sampling(samples=8, max_new_tokens=6),
    )  # fmt: skip
    kls: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            kls.append(float(trainer.callback_metrics["train/kl_per_token"]))

    trainer([Watch()], tmp_path, max_epochs=25, limit_val_batches=0).fit(
        module, datamodule=PromptData(str(tmp_path / "train.jsonl"), batch_size=2)
    )
    assert len(kls) == 25 and kls[0] > 0.05 and sum(kls[-3:]) / 3 < 0.5 * kls[0]


def test_the_column_of_each_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "w1", "teacher_prompt": "w2 {prompt}"}\n{"prompt": "w3"}\n')
    (tmp_path / "a.csv").write_text("prompt,teacher_prompt\nw1,w2 {prompt}\nw3,\n")
    for name in ("a.jsonl", "a.csv"):
        assert read_prompts(tmp_path / name) == [Prompt("w1", teacher_prompt="w2 {prompt}"), "w3"]
    (tmp_path / "b.jsonl").write_text('{"prompt": "w1", "teacher_prompt": 3}\n')
    with pytest.raises(Exception, match=r"line 1: expected text in `teacher_prompt`, but got int"):
        read_prompts(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text(
        '{"prompt": "w1", "teacher_prompt": null}\n{"prompt": "w2", "teacher_prompt": " "}\n'
    )
    with pytest.raises(ConfigError, match=r"c.jsonl`, line 2: expected text in `teacher_prompt`, but it is empty"):
        read_prompts(tmp_path / "c.jsonl")


def test_the_context_of_the_teacher_is_no_condition(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """No model reads it: among the conditions it would have no effect, and would hide the field of that name."""
    wrong = "expected conditions that a model reads, but got `teacher_prompt`"
    (tmp_path / "a.jsonl").write_text('{"prompt": "w1", "conditions": {"teacher_prompt": "w2 {prompt}"}}\n')
    (tmp_path / "a.csv").write_text("prompt,conditions.teacher_prompt\nw3,\nw1,w2 {prompt}\n")
    for name, line in (("a.jsonl", 1), ("a.csv", 3)):
        with pytest.raises(ConfigError, match=f"{name}`, line {line}: {wrong}"):
            read_prompts(tmp_path / name)
    assert (
        main(["generate", "--model", tiny_model, "--prompt", "w1", "--condition", "teacher_prompt=w2", "prefix=w3"])
        == 2
    )
    assert f"Option `--condition`: {wrong}" in capsys.readouterr().err


def test_a_message_for_the_teacher_takes_a_template(tiny_model: str) -> None:
    (problem,) = student_of(tiny_model, guidance=Guidance(1.0, teacher_system="w9")).problems()
    assert str(problem).startswith("Key `guidance.teacher_system`: expected a model under a chat template")


LONG = " ".join(["w4"] * 60)
IN_TRAIN = "Key `data.init_args.train`: `.*train.jsonl`: "
ROOM = "expected at most 56 positions for prompt"
SYSTEM_LONG = f"Key `model.guidance.teacher_system`: {ROOM} `w1` with this system message"
COLUMN_LONG = f"{IN_TRAIN}{ROOM} `w1` with its `teacher_prompt`, since"
LACKS = "Prompt `w3`: expected a `teacher_prompt`, since 1 other prompt has one, but "
ROWS = {
    "own": '{"prompt": "w1", "teacher_prompt": "w2 {prompt}"}\n',
    "long": f'{{"prompt": "w1", "teacher_prompt": "{LONG}"}}\n',
    "plain": '{"prompt": "w3"}\n',
}
SYSTEM = {"teacher_system": LONG}
CASES: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("own plain", "", {}, IN_TRAIN + LACKS + "this one has none", "write `{prompt}`"),
    ("own plain", "plain", {}, IN_TRAIN + LACKS + "this one and 1 more have none", ""),
    ("own", "plain", {}, (IN_TRAIN + LACKS).replace("train", "validation").replace("w3", "w9"), "this one has none"),
    ("own long", "own", {}, COLUMN_LONG, "but the teacher reads 62. Shorten its `teacher_prompt`, or lower"),
    (
        "own",
        "own",
        SYSTEM,
        f"{SYSTEM_LONG} and its `teacher_prompt`, since",
        "Shorten one of the two, or lower",
    ),
    (
        "plain",
        "plain",
        SYSTEM,
        SYSTEM_LONG.replace("w1", "w3"),
        "but the teacher reads 64. Shorten it, or lower",
    ),
    ("plain", "plain", {}, "Key `model.guidance.scale`: expected a teacher to learn from, but at 1", "the loss is 0"),
    (
        "plain",
        "plain",
        {"scale": 2.0, "negative": f"{LONG} {LONG}"},
        "Key `model.guidance.negative`: Negative prompt `w4 w4",
        "at most 56",
    ),
    (
        "own",
        "",
        {"scale": 2.0, "negative_system": LONG},
        "Key `model.guidance.negative_system`: Negative prompt `w2 w1` with its system message: expected at most 56",
        "Shorten it.",
    ),
]


@pytest.mark.parametrize(("train", "validation", "guidance", "begins", "holds"), CASES)
def test_what_is_wrong_with_a_context(
    chat: str, tmp_path: Path, train: str, validation: str, guidance: dict[str, Any], begins: str, holds: str
) -> None:
    """A prompt that lacks the column, a context that leaves no position, none at all: one problem, before weights load."""
    shutil.copytree(chat, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "train.jsonl").write_text("".join(ROWS[row] for row in train.split()))
    held_out = "".join(ROWS[row] for row in validation.split()).replace("w1", "w8").replace("w3", "w9")
    (tmp_path / "validation.jsonl").write_text(held_out)
    module = student_of(
        str(tmp_path / "broken"), guidance=Guidance(**{"scale": 1.0} | guidance), losses={"kl": ReverseKL()}
    )
    data = PromptData(str(tmp_path / "train.jsonl"), str(tmp_path / "validation.jsonl") if validation else "")
    with pytest.raises(ConfigError) as caught:
        trainer([], tmp_path, max_steps=1).fit(module, datamodule=data)
    (problem,) = map(str, caught.value.problems)
    assert re.match(begins, problem) and holds in problem, problem


@pytest.mark.parametrize(
    ("settings", "rows", "refused"),
    [
        ({}, '{"prompt": "w1"}\n', True),
        ({}, '{"prompt": "w1", "teacher_prompt": "{prompt}"}\n', True),  # the prompt itself
        ({"losses": {"kl": ReverseKL(), "other": ForwardKL()}}, '{"prompt": "w1"}\n', True),
        ({}, '{"prompt": "w1", "teacher_prompt": "w2 {prompt}"}\n', False),
        ({"guidance": Guidance(1.0, schedule="linear", final_scale=2.0)}, '{"prompt": "w1"}\n', False),
        ({"guidance": Guidance(1.0, teacher_system="w9")}, '{"prompt": "w1"}\n', False),
        ({"start": "elsewhere"}, '{"prompt": "w1"}\n', False),
        ({"dropout": True}, '{"prompt": "w1"}\n', False),
        ({"losses": {"kl": ReverseKL(), "reward": PolicyGradient(FirstToken())}}, '{"prompt": "w1"}\n', False),
        ({"losses": {"sft": CrossEntropy()}, "off_policy": True}, '{"prompt": "w1"}\n', False),
        ({"allow_no_teacher": True}, '{"prompt": "w1"}\n', False),
    ],
)
def test_a_teacher_that_is_the_student_itself_teaches_nothing(
    chat: str, tmp_path: Path, settings: dict[str, Any], rows: str, refused: bool
) -> None:
    (tmp_path / "train.jsonl").write_text(rows)
    data = PromptData(str(tmp_path / "train.jsonl"))
    data.setup("fit")
    module = student_of(chat, **({"guidance": Guidance(1.0), "losses": {"kl": ReverseKL()}} | settings))
    assert ["model.guidance.scale"] * refused == [each.path for each in module.problems_of_data(data)]
    assert not module.problems_of_data(data, "validate")  # the distance to the base can be of interest
