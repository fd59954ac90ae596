"""A generator with an adapter: peft's own forward beside it, the teacher on its tensors, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.tuners.lora.layer import Linear as PeftLinear
from tiny import tiny_folder, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from cfg_distill.distillation.module import fingerprint
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, LoRA, open_generator
from cfg_distill.generators.adapted import AdaptedLinear
from cfg_distill.generators.linear import use_products
from cfg_distill.generators.lora import adapter_of, standing_in
from cfg_distill.planning.dry import Ledger
from cfg_distill.sampling import Sampling, rollout
from tests.lora.conftest import Make

TOKENS_NKT = torch.tensor([[[5, 6, 7, 8]], [[9, 10, 4, 6]]])
MASK_NKT = torch.ones_like(TOKENS_NKT, dtype=torch.bool)
PROMPTS = ["w1 w2", "w3"]


def student_of(folder: str, lora: LoRA | None = None, **settings: str) -> CausalLM:
    """A student whose adapter does something."""
    torch.manual_seed(1)
    student = CausalLM(folder, lora=lora or LoRA(rank=4, alpha=6.0), **settings).load()  # type: ignore[arg-type]
    with torch.no_grad():
        for _, b_OR, _ in adapter_of(student.model).values():
            b_OR.normal_(std=0.5)
    return student


@torch.no_grad()
def logits(generator: CausalLM) -> torch.Tensor:
    return generator.logits(PROMPTS, TOKENS_NKT, MASK_NKT)


def inputs_of(generator: CausalLM) -> torch.Tensor:
    """Rows of one length, for models that stand alone."""
    return torch.cat([generator.encode(["w1 w2", "w3 w4"]).tensors["input_ids"], TOKENS_NKT[:, 0]], dim=1)


# Against peft


def test_what_is_saved_is_what_peft_loads(tiny_model: str, tmp_path: Path) -> None:
    student = student_of(tiny_model)
    student.save(tmp_path)
    ids_NS = inputs_of(student)
    with torch.no_grad():
        expected = student.model(ids_NS).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        plain = base(ids_NS).logits
        by_hand: nn.Module = PeftModel.from_pretrained(base, str(tmp_path))
        torch.testing.assert_close(by_hand(ids_NS).logits, expected)
        torch.testing.assert_close(AutoPeftModelForCausalLM.from_pretrained(tmp_path)(ids_NS).logits, expected)
    assert (plain - expected).abs().max() > 0.1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json"]  # fmt: skip


def test_what_peft_wrote_is_read_without_it(tiny_model: str, adapter: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter("one", r=3, use_rslora=True)
    ids_NS = inputs_of(CausalLM(tiny_model).load())
    with torch.no_grad():
        expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)(ids_NS).logits
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    opened = open_generator(folder)
    assert isinstance(opened, CausalLM) and not opened.problems() and opened.max_positions == 64
    with torch.no_grad():
        torch.testing.assert_close(opened.load().model(ids_NS).logits, expected)


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(adapter: Make) -> None:
    folder = Path(adapter("one"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert open_generator(str(folder)).encode is not None
    assert CausalLM(str(folder)).tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_transposed_layers_as_gpt_2_has_them(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    student = student_of(str(tmp_path / "base"), LoRA(rank=2, targets=["c_attn", "mlp.c_proj"]))
    assert len(adapter_of(student.model)) == 4
    student.save(tmp_path / "adapter")
    ids_NS = inputs_of(student)
    with torch.no_grad():
        expected = student.model(ids_NS).logits
        by_peft = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
        )
        torch.testing.assert_close(by_peft(ids_NS).logits, expected)
        torch.testing.assert_close(CausalLM(str(tmp_path / "adapter")).load().model(ids_NS).logits, expected)
        torch.testing.assert_close(student.merge_adapter().model(ids_NS).logits, expected)


@pytest.mark.parametrize(
    ("rank", "dtype", "lower"),
    [(8, torch.float32, False), (64, torch.float32, False), (8, torch.bfloat16, False), (8, torch.float32, True)],
    ids=["plain", "rank of oneDNN", "base in bfloat16", "autocast"],
)
def test_a_layer_computes_to_the_bit_what_pefts_does(
    rank: int, dtype: torch.dtype, lower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(layer: nn.Module) -> list[torch.Tensor]:
        layer.zero_grad()
        own = rows.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            made = layer(own * 1.0)
        made.float().square().sum().backward()
        return [made, own.grad, *(each.grad for each in layer.parameters() if each.grad is not None)]

    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(256, 512, bias=False))
    use_products(model)
    model.to(dtype)
    LoRA(rank=rank).inject(model)
    (layer,) = model
    assert type(layer) is AdaptedLinear
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    rows = torch.randn(4, 32, 256, dtype=dtype)
    found = run(layer)
    monkeypatch.setattr(AdaptedLinear, "forward", PeftLinear.forward)
    expected = run(layer)
    assert len(found) == 4 and all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_layer_makes_two_activations() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    LoRA(rank=2).inject(model)
    rows = torch.randn(1000, 64)
    with Ledger() as ledger:
        ledger.begin()
        made = model(rows)
    assert made.nbytes * 2 <= ledger.peak < made.nbytes * 2.2


# The teacher


def test_the_teacher_is_the_base_on_the_students_tensors(tiny_model: str) -> None:
    plain = CausalLM(tiny_model).load()
    student = student_of(tiny_model)
    teacher = student.frozen_copy()
    assert teacher.lora is None and fingerprint(teacher) == fingerprint(plain)
    assert torch.equal(logits(teacher), logits(plain)) and not torch.allclose(logits(student), logits(plain))

    own = {tensor.data_ptr() for tensor in student.model.parameters()}
    assert all(tensor.data_ptr() in own for tensor in teacher.model.parameters())
    both = {tensor.data_ptr(): tensor.nbytes for tensor in (*student.parameters(), *teacher.parameters())}
    adapter_bytes = sum(a.nbytes + b.nbytes for a, b, _ in adapter_of(student.model).values())
    assert sum(both.values()) == sum(tensor.nbytes for tensor in plain.parameters()) + adapter_bytes


def test_the_teacher_disturbs_nothing(tiny_model: str) -> None:
    student = student_of(tiny_model)
    student.train()

    def settings() -> list[bool]:
        return [p.requires_grad for p in student.parameters()] + [m.training for m in student.modules()]

    before = settings()
    teacher = student.frozen_copy()
    logits(teacher.eval())
    assert settings() == before and not any(module.training for module in teacher.modules())
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_one_copy_of_the_weights_survives_a_move(tiny_model: str) -> None:
    student = student_of(tiny_model)
    both = nn.ModuleList([student, student.frozen_copy()])
    both.to(torch.float64)  # as Lightning moves to a device
    student_pointers = {tensor.data_ptr() for tensor in both[0].parameters()}
    assert all(tensor.data_ptr() in student_pointers for tensor in both[1].parameters())


def test_the_adapter_is_float32_on_a_base_of_half_precision(tiny_model: str, tmp_path: Path) -> None:
    student = student_of(tiny_model, dtype="bfloat16")
    assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in student.parameters() if not p.requires_grad} == {torch.bfloat16}
    student.predictions(PROMPTS, TOKENS_NKT, MASK_NKT).whole().float().sum().backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    assert rollout(student, PROMPTS, Sampling(samples=2, max_new_tokens=4)).tokens_BGKT.shape == (2, 2, 1, 4)
    student.save(tmp_path)
    torch.testing.assert_close(
        logits(CausalLM(str(tmp_path), dtype="bfloat16").load()), logits(student), atol=0.2, rtol=0.1
    )


# Taking another adapter


def test_a_student_begins_exactly_as_the_adapter_it_starts_from(tiny_model: str, tmp_path: Path) -> None:
    first = student_of(tiny_model, LoRA(rank=4, alpha=6.0, targets=["q_proj", "v_proj"]))
    first.save(tmp_path)
    for lora in (LoRA(rank=4, alpha=6.0, targets=["q_proj", "v_proj"]), LoRA(rank=6, alpha=2.0)):
        second = student_of(tiny_model, lora)  # what its adapter did before does not count
        assert not second.problems_of_start(str(tmp_path))
        second.load_weights(str(tmp_path))
        torch.testing.assert_close(logits(second), logits(first))
    whole = CausalLM(tiny_model).load()
    whole.load_weights(str(tmp_path))  # all weights of such a student may begin there too
    torch.testing.assert_close(logits(whole), logits(first))


def test_what_a_student_cannot_begin_with(tiny_model: str, tmp_path: Path) -> None:
    student_of(tiny_model).save(tmp_path / "first")
    first = str(tmp_path / "first")

    def said(folder: str, base: str = tiny_model, **settings: object) -> str:
        (problem,) = CausalLM(base, lora=LoRA(**settings)).problems_of_start(folder)  # type: ignore[arg-type]
        return str(problem)

    assert "holds whole weights" in said(tiny_model)
    assert "expected at least 4, the rank of" in said(first, rank=2)
    other = tiny_folder(tmp_path / "other", seed=1)
    assert f"is one of `{Path(tiny_model).resolve()}`" in said(first, base=other)
    with pytest.raises(ConfigError, match="include its layers"):
        CausalLM(tiny_model, lora=LoRA(targets=["q_proj"])).load().load_weights(first)


def test_another_adapter_stands_in_for_a_while(tiny_model: str, tmp_path: Path) -> None:
    student, other = student_of(tiny_model), student_of(tiny_model, LoRA(rank=7, targets=["q_proj"]))
    before, kept = logits(student), dict(student.model.named_parameters())
    with standing_in(student.model, adapter_of(other.model)):
        torch.testing.assert_close(logits(student), logits(other))
        student.save(tmp_path)
    torch.testing.assert_close(logits(CausalLM(str(tmp_path)).load()), logits(other))
    assert torch.equal(logits(student), before)
    after = dict(student.model.named_parameters())
    assert after.keys() == kept.keys() and all(after[name] is kept[name] for name in kept)


# What is wrong, before weights load


def test_all_problems_at_once(tiny_model: str) -> None:
    lora = LoRA(rank=0, alpha=-1, dropout=1.0, targets=["q_porj", "lm_head", "mlp.up_proj"])
    found = [str(problem) for problem in CausalLM(tiny_model, lora=lora).problems()]
    for key in ("rank", "alpha", "dropout", "targets"):
        assert any(f"Key `lora.{key}`: expected" in problem for problem in found)
    targets = [problem for problem in found if "targets" in problem]
    assert len(targets) == 2
    assert "`q_porj` matches none. Did you mean `q_proj`?" in targets[0]
    assert "`lm_head` matches none." in targets[1]
    assert all(
        "There are: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj." in problem for problem in targets
    )
    assert any(
        "expected names of layers" in str(problem) for problem in CausalLM(tiny_model, lora=LoRA(targets=[])).problems()
    )


def test_peft_is_an_extra(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = CausalLM(tiny_model, lora=LoRA()).problems()
    assert str(problem).startswith("Key `lora`: ") and 'pip install ".[lora]"' in str(problem)


def test_an_adapter_is_no_base(adapter: Make, tiny_model: str) -> None:
    folder = adapter("one")
    (problem,) = CausalLM(folder, lora=LoRA()).problems()
    assert f"`{folder}` is an adapter of `{tiny_model}`" in str(problem)


def test_a_base_that_has_gone(adapter: Make, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    folder = adapter("one", base=base)
    (tmp_path / "base").rename(tmp_path / "moved")
    (problem,) = open_generator(folder).problems()
    assert f"`{base}` does not exist" in str(problem) and "adapter_config.json" in str(problem)
