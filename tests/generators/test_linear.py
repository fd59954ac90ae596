"""Products by oneDNN, with weights as they lie and packed: the same numbers as torch's, and nothing left behind."""

import copy

import pytest
import torch
from tiny import tiny_adapted, tiny_folder
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cfg_distill.generators import CausalLM, linear
from cfg_distill.generators.linear import Linear, can_use_onednn, onednn, packed, product, times_weight, use_products


@pytest.mark.parametrize("least", [1, 2**40], ids=["laid out anew", "as it lies"])
@pytest.mark.parametrize("adapted", [False, True])
def test_packed_products_are_those_of_the_model(tmp_path, adapted, least, monkeypatch):
    monkeypatch.setattr(linear, "LEAST_PACKED", least)
    generator = (tiny_adapted if adapted else lambda folder: CausalLM(folder).load())(tiny_folder(tmp_path))
    ids = torch.randint(16, (3, 7), generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in generator.model.state_dict().items()}
    hung = [sorted(vars(parameter)) for parameter in generator.parameters()]
    # The factors of an adapter rest while it is added to a packed weight.
    own = {name: layer for name, layer in generator.model.named_modules() if isinstance(layer, Linear)}
    used = {name: layer for name, layer in own.items() if ".lora_" not in name}
    rests = [layer for layer in generator.model.modules() if hasattr(layer, "merged_adapters")]
    assert len(used) == 15 and len(rests) == (14 if adapted else 0)
    with torch.no_grad():
        expected = generator.model(ids).logits
        with packed(generator.model):
            assert {name for name, layer in own.items() if layer.packed_weight is not None} == set(used)
            assert all(layer.packed_weight.is_mkldnn == (least == 1) for layer in used.values())
            assert all(layer.merged_adapters for layer in rests)
            assert list(generator.model.state_dict()) == list(before)
            assert [sorted(vars(parameter)) for parameter in generator.parameters()] == hung
            torch.testing.assert_close(generator.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
            spoilt = next(layer for name, layer in used.items() if name.startswith("model.layers.1.mlp.down_proj"))
            spoilt.packed_weight = packed_copy_of(torch.zeros_like(spoilt.weight))
            assert (generator.model(ids).logits - expected).abs().max() > 0.1, "the copies are what multiplies"
        assert torch.equal(generator.model(ids).logits, expected)
    assert not any(layer.packed_weight is not None for layer in own.values())
    assert not any(layer.merged_adapters for layer in rests)
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.model.state_dict().items())


def packed_copy_of(weight):
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


@pytest.mark.parametrize("tied", [False, True])
def test_a_rollout_multiplies_by_the_packed_head(tmp_path, tied, monkeypatch):
    monkeypatch.setattr(linear, "LEAST_PACKED", 1)
    generator = CausalLM(tiny_folder(tmp_path)).load()
    if tied:
        generator.model.lm_head.weight = generator.model.model.embed_tokens.weight
    with torch.no_grad(), packed(generator.model):
        head = generator.model.lm_head.packed_weight
        assert head.is_mkldnn and type(generator.model.model.embed_tokens) is nn.Embedding
        asked = []
        with pytest.MonkeyPatch.context() as patch:
            plain = linear._onednn
            patch.setattr(
                linear, "_onednn", lambda rows, weight, bias: asked.append(weight) or plain(rows, weight, bias)
            )
            generator.prefill(["w1 w2"], 2)[1].whole()
        assert asked[-1] is head


def test_a_copy_of_a_packed_layer_is_not_packed():
    layer = Linear.of(nn.Linear(8, 8))
    with packed(layer):
        assert layer.packed_weight is not None
        twin = copy.deepcopy(layer)
    assert twin.packed_weight is None and torch.equal(twin.weight, layer.weight) and "packed_weight" not in vars(twin)


def test_an_error_leaves_nothing_packed():
    layer = Linear(8, 8)
    with pytest.raises(KeyError), packed(layer):
        raise KeyError
    assert layer.packed_weight is None


def test_a_teacher_on_the_weights_of_a_packed_student_is_not_packed(tmp_path):
    student = tiny_adapted(tiny_folder(tmp_path))
    teacher, ids = student.frozen_copy(), torch.randint(16, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = teacher.model(ids).logits
        with packed(student.model):
            assert torch.equal(teacher.model(ids).logits, expected)


@pytest.fixture
def asked(monkeypatch):
    """What is left to torch's own product."""
    plain, given = torch.nn.functional.linear, []
    monkeypatch.setattr(linear, "linear", lambda *factors: given.append(factors) or plain(*factors))
    return given


@pytest.fixture
def any_size(monkeypatch):
    """oneDNN whatever the sizes are."""
    for name in ("LEAST_ROWS", "LEAST_SIDE", "LEAST_WORK"):
        monkeypatch.setattr(linear, name, 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs", ["rows", "weight", "both"])
def test_a_product_and_its_gradients_are_those_of_torch(any_size, asked, needs, bias):
    torch.manual_seed(0)
    rows, layer = torch.randn(3, 5, 8, requires_grad=needs != "weight"), Linear(8, 12, bias=bias)
    layer.weight.requires_grad_(needs != "rows")
    leaves = [tensor for tensor in (rows, *layer.parameters()) if tensor.requires_grad]
    results = [layer(rows), torch.nn.functional.linear(rows, layer.weight, layer.bias)]
    assert not asked and "_Product" in type(results[0].grad_fn).__name__
    towards = torch.randn_like(results[0])
    ours, theirs = (torch.autograd.grad(result, leaves, towards) for result in results)
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(times_weight(towards[0], layer.weight), towards[0] @ layer.weight)


def test_a_model_trains_as_with_the_products_of_torch(any_size, asked, tmp_path):
    generator, states = CausalLM(tiny_folder(tmp_path)).load(), []
    ids = torch.randint(16, (3, 7), generator=torch.Generator().manual_seed(0))
    for enabled in (True, False):
        asked.clear()
        with onednn(enabled):
            logits = generator.model(ids).logits
        assert bool(asked) != enabled
        states.append([logits, *torch.autograd.grad(logits.square().sum(), list(generator.model.parameters()))])
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def test_on_a_processor_of_intel_torch_multiplies():
    for has_avx512 in (True, False):
        least_work, least_packed = linear.least_sizes(is_intel=True, has_avx512=has_avx512)
        assert least_work > 2**40 and least_packed > 224 * 512  # the largest weight of the shipped model
    assert (
        linear.least_sizes(is_intel=False, has_avx512=True)[0] < linear.least_sizes(False, has_avx512=False)[0] < 2**40
    )


def test_small_products_and_other_types_are_left_to_torch(asked, monkeypatch):
    monkeypatch.setattr(linear, "LEAST_WORK", 2**21)  # as on a processor of AMD with AVX-512
    weight = torch.randn(64, 64)
    with torch.no_grad():
        product(torch.randn(8, 64), weight, None)
        product(torch.randn(1, 8), torch.randn(2**18, 8), None)
        product(torch.randn(2**10, 64).bfloat16(), weight.bfloat16(), None)
        assert len(asked) == 3
        torch.testing.assert_close(product(rows := torch.randn(2**10, 64), weight, None), rows @ weight.t())
    assert len(asked) == 3


def test_only_plain_layers_are_taken():
    class Other(nn.Linear):
        pass

    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, Other(2, 2), nn.Sequential(shared)).eval()
    before = model.state_dict(keep_vars=True)
    use_products(model)
    use_products(model)
    assert [type(layer) for layer in model] == [Linear, Other, nn.Sequential]
    assert model[2][0] is model[0] and not model[0].training, "a layer in two places stays one; modes stay"
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[name] is before[name] for name in before), "the very parameters"


@pytest.mark.parametrize("adapted", [False, True])
def test_under_mixed_precision_weights_are_cast_once(tmp_path, adapted):
    generator = (tiny_adapted if adapted else lambda folder: CausalLM(folder).load())(tiny_folder(tmp_path))
    ids, casts = torch.randint(16, (3, 7), generator=torch.Generator().manual_seed(0)), []

    class Casts(TorchDispatchMode):
        """Counts what is cast to bfloat16."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
                casts.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    def logits():
        casts.clear()
        with Casts():
            return generator.model(ids).logits, casts.copy()

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected, often = logits()
        with packed(generator.model):
            found, seldom = logits()
        assert torch.equal(found, expected)
    weights = [layer.weight.shape for layer in generator.model.modules() if isinstance(layer, Linear)
               and min(layer.weight.shape) > 2]  # fmt: skip
    assert all(often.count(shape) >= weights.count(shape) for shape in weights)
    assert not [shape for shape in seldom if shape in weights]


def test_gradients_go_through_the_weight_itself():
    layer, rows = Linear(8, 8), torch.randn(3, 8)
    with packed(layer):
        assert layer.packed_weight is not None
        layer(rows).sum().backward()
    torch.testing.assert_close(layer.weight.grad, rows.sum(0).expand(8, 8))


def test_only_plain_float32_on_a_cpu_is_packed():
    assert can_use_onednn(torch.empty(4, 4))
    assert not can_use_onednn(torch.empty(4, 4, dtype=torch.bfloat16)) and not can_use_onednn(
        torch.empty(4, 4, device="meta")
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_use_onednn(torch.empty(4, 4))
    layer, rows = Linear(8, 8, dtype=torch.bfloat16), torch.randn(2, 8, dtype=torch.bfloat16)
    with torch.no_grad(), packed(layer):
        assert layer.packed_weight is None
        assert torch.equal(layer(rows), torch.nn.functional.linear(rows, layer.weight, layer.bias))
