"""Packed weights: the same numbers as plain ones, and nothing left behind."""

import pytest
import torch
from tiny import tiny_folder
from torch import nn

from cfg_distill.generators import CausalLM, LoRA, packing
from cfg_distill.generators.packing import can_pack, packed, product


def perturbed(folder: str) -> CausalLM:
    generator = CausalLM(folder, lora=LoRA(rank=2)).load()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return generator


@pytest.mark.parametrize("adapted", [False, True])
def test_packed_products_are_those_of_the_model(tmp_path, adapted):
    generator = (perturbed if adapted else lambda folder: CausalLM(folder).load())(tiny_folder(tmp_path))
    ids = torch.randint(16, (3, 7), generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in generator.model.state_dict().items()}
    forwards = [module.forward for module in generator.model.modules()]
    with torch.no_grad():
        expected = generator.model(ids).logits
        with packed(generator.model):
            assert any(module.forward not in forwards for module in generator.model.modules())
            torch.testing.assert_close(generator.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(generator.model(ids).logits, expected)
    assert [module.forward for module in generator.model.modules()] == forwards
    assert not any(hasattr(parameter, "packed_weight") for parameter in generator.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.model.state_dict().items())


def test_an_error_leaves_nothing_packed():
    layer = nn.Linear(8, 8)
    with pytest.raises(KeyError), packed(layer):
        raise KeyError
    assert "forward" not in vars(layer) and not hasattr(layer.weight, "packed_weight")


@pytest.mark.parametrize(("wide", "dtype", "by_torch"), [(13, "float32", 1), (12, "float32", 0), (12, "bfloat16", 1)])
def test_a_head_over_a_vocabulary_is_the_same_product(monkeypatch, wide, dtype, by_torch):
    plain = torch.nn.functional.linear
    rows, weight, bias = (torch.randn(*shape).to(getattr(torch, dtype)) for shape in ((5, 8), (12, 8), (12,)))
    asked = []
    monkeypatch.setattr(packing, "linear", lambda *given: asked.append(given) or plain(*given))
    monkeypatch.setattr(packing, "WIDE", wide)
    with torch.no_grad():
        torch.testing.assert_close(product(rows, weight, bias), plain(rows, weight, bias))
    assert len(asked) == by_torch


def test_gradients_go_through_the_weight_itself():
    layer, rows = nn.Linear(8, 8), torch.randn(3, 8)
    with packed(layer):
        product(rows, layer.weight, layer.bias).sum().backward()
    torch.testing.assert_close(layer.weight.grad, rows.sum(0).expand(8, 8))


def test_only_plain_float32_on_a_cpu_is_packed():
    assert can_pack(torch.empty(4, 4))
    assert not can_pack(torch.empty(4, 4, dtype=torch.bfloat16)) and not can_pack(torch.empty(4, 4, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_pack(torch.empty(4, 4))
    layer, rows = nn.Linear(8, 8, dtype=torch.bfloat16), torch.randn(2, 8, dtype=torch.bfloat16)
    with torch.no_grad(), packed(layer):
        assert torch.equal(layer(rows), torch.nn.functional.linear(rows, layer.weight, layer.bias))
