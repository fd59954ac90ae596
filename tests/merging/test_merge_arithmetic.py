"""Merging of state dicts, compared with the same formulas in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfg_distill.errors import ConfigError
from cfg_distill.merging import ema, lerp, liti, merge_states, slerp, soup, weighted


def make_state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(7, 5, generator=random).to(dtype),
        "block.weight": torch.randn(5, 5, generator=random).to(dtype),
        "block.bias": torch.randn((), generator=random).to(dtype),
        "steps": torch.tensor([3, 4]),
    }


def as_float64(state: dict[str, torch.Tensor], name: str) -> np.ndarray:
    return state[name].double().numpy()


FLOATS = ("embed", "block.weight", "block.bias")
A, B, C = make_state(0), make_state(1), make_state(2)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0, 1.5, -0.5])
def test_lerp_is_the_formula(weight: float) -> None:
    merged = lerp(A, B, weight)
    for name in FLOATS:
        expected = (1 - weight) * as_float64(A, name) + weight * as_float64(B, name)
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight", [1.5, -0.5])
def test_the_sum_of_one_model_goes_beyond_it_or_behind_its_start(weight: float) -> None:
    merged = merge_states("sum", [A], [weight], C)
    for name in FLOATS:
        expected = (1 - weight) * as_float64(C, name) + weight * as_float64(A, name)
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def numpy_slerp(a: np.ndarray, b: np.ndarray, start: np.ndarray, weight: float) -> np.ndarray:
    da, db = a - start, b - start
    angle = np.arccos((da * db).sum() / np.linalg.norm(da.ravel()) / np.linalg.norm(db.ravel()))
    return start + (np.sin((1 - weight) * angle) * da + np.sin(weight * angle) * db) / np.sin(angle)


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
def test_slerp_is_the_formula_tensor_by_tensor(weight: float) -> None:
    merged = slerp(A, B, C, weight)
    for name in ("embed", "block.weight"):
        expected = numpy_slerp(as_float64(A, name), as_float64(B, name), as_float64(C, name), weight)
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(merged["embed"], lerp(A, B, weight)["embed"], atol=1e-2)


def test_slerp_keeps_the_norm_of_task_vectors_of_equal_norm() -> None:
    start = {"w": torch.zeros(64)}
    a, b = ({"w": torch.nn.functional.normalize(make_state(seed)["embed"].flatten(), dim=0)} for seed in (3, 4))
    assert slerp(a, b, {"w": start["w"][:35]}, 0.5)["w"].norm().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("case", ["zero", "parallel", "opposite"])
def test_slerp_falls_back_to_lerp_when_the_sine_is_small(case: str) -> None:
    factor = {"zero": 0.0, "parallel": 2.0, "opposite": -1.0}[case]
    a, start = {"w": A["embed"]}, {"w": C["embed"]}
    b = {"w": C["embed"] + factor * (A["embed"] - C["embed"])}
    torch.testing.assert_close(slerp(a, b, start, 0.3)["w"], lerp(a, b, 0.3)["w"], rtol=1e-4, atol=1e-5)


def test_slerp_is_continuous_where_it_falls_back() -> None:
    """Just above the threshold the quotients of sines give what LERP gives just below."""
    a, start = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.zeros(2)}
    for angle in (0.9e-4, 1.1e-4):
        b = {"w": torch.tensor([1.0, angle])}
        torch.testing.assert_close(slerp(a, b, start, 0.3)["w"], torch.tensor([1.0, 0.3 * angle]), rtol=1e-5, atol=1e-8)


def test_slerp_jumps_where_task_vectors_are_opposite() -> None:
    """Near pi the arc keeps its length; where the sine is too small LERP passes near the start. docs/method.md says so."""
    a, start = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.zeros(2)}
    lengths = [float(slerp(a, {"w": torch.tensor([-1.0, gap])}, start, 0.5)["w"].norm()) for gap in (2e-4, 0.5e-4)]
    assert lengths == [pytest.approx(1.0, abs=1e-3), pytest.approx(0.25e-4, rel=1e-3)]


def test_liti_soup_weighted_and_ema_are_their_formulas() -> None:
    a, b, c = (as_float64(state, "embed") for state in (A, B, C))
    cases = [
        (liti(A, B, 0.2), 0.8 * a + 0.2 * b),
        (soup([A, B, C]), (a + b + c) / 3),
        (weighted([A, B, C], [0.2, 0.3, 0.5]), 0.2 * a + 0.3 * b + 0.5 * c),
        (ema([A, B, C], 0.9), 0.9 * (0.9 * a + 0.1 * b) + 0.1 * c),
    ]
    for merged, expected in cases:
        np.testing.assert_allclose(merged["embed"].numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_are_the_inputs_to_the_bit(dtype: torch.dtype) -> None:
    a, b, start = (make_state(seed, dtype) for seed in (0, 1, 2))
    for merged, expected in [
        (lerp(a, b, 0.0), a),
        (lerp(a, b, 1.0), b),
        (slerp(a, b, start, 0.0), a),
        (slerp(a, b, start, 1.0), b),
        (liti(start, a, 0.0), start),
        (liti(start, a, 1.0), a),
        (soup([a, a]), a),
        (ema([a, b], 1.0), a),
        (ema([a, b], 0.0), b),
    ]:
        assert all(
            torch.equal(merged[name], expected[name]) and merged[name].dtype == expected[name].dtype
            for name in expected
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    states = [make_state(seed, dtype) for seed in range(5)]
    expected = torch.tensor(np.mean([as_float64(state, "embed") for state in states], axis=0)).float().to(dtype)
    merged = soup(states)["embed"]
    assert merged.dtype == dtype
    assert torch.equal(merged, expected)
    in_half = sum(state["embed"] for state in states) / 5
    assert not torch.equal(merged, in_half)


def test_swapping_the_models_swaps_the_weight() -> None:
    for forward, backward in [(lerp(A, B, 0.3), lerp(B, A, 0.7)), (slerp(A, B, C, 0.3), slerp(B, A, C, 0.7)),
                              (soup([A, B]), soup([B, A]))]:  # fmt: skip
        for name in FLOATS:
            torch.testing.assert_close(forward[name], backward[name], rtol=1e-5, atol=1e-6)


def test_mixed_dtypes_give_the_wider_one_in_either_order() -> None:
    half = make_state(1, torch.bfloat16)
    assert lerp(A, half, 0.5)["embed"].dtype == lerp(half, A, 0.5)["embed"].dtype == torch.float32


def test_the_inputs_are_untouched_and_nothing_is_shared() -> None:
    before = {name: tensor.clone() for name, tensor in A.items()}
    for merged in (lerp(A, B, 0.0), soup([A, A]), slerp(A, B, C, 0.0)):
        for tensor in merged.values():
            tensor.zero_()
    assert all(torch.equal(A[name], before[name]) for name in A)


def test_tied_tensors_stay_tied() -> None:
    tied = [{"embed": state["embed"], "head": state["embed"]} for state in (A, B)]
    merged = lerp(*tied, 0.5)
    assert merged["embed"] is merged["head"]
    untied = lerp(tied[0], {"embed": B["embed"], "head": C["embed"]}, 0.5)
    assert not torch.equal(untied["embed"], untied["head"])


def test_equal_integers_are_kept_and_different_ones_refused() -> None:
    assert torch.equal(lerp(A, B, 0.5)["steps"], A["steps"])
    with pytest.raises(ConfigError, match=r"Integer tensors differ.*steps"):
        lerp(A, B | {"steps": torch.tensor([3, 5])}, 0.5)


def test_mismatching_names_and_shapes_are_listed_together() -> None:
    other = {name: tensor for name, tensor in B.items() if name != "embed"} | {
        "block.weight": torch.zeros(5, 6),
        "extra": torch.zeros(1),
    }
    with pytest.raises(ConfigError) as error:
        lerp(A, other, 0.5)
    text = str(error.value)
    assert "Tensors of model 1 that model 2 lacks: embed." in text
    assert "Tensors of model 2 that model 1 lacks: extra." in text
    assert "block.weight [5, 5] vs [5, 6]" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lerp(A, B, 50.0), "expected numbers from -5 to 5, but got -49.0, 50.0"),
        (lambda: merge_states("lerp", [A, B], [-0.5, 1.4]), r"expected a sum of 1, but -0.5 \+ 1.4 = 0.9"),
        (lambda: slerp(A, B, C, 1.5), r"expected numbers in \[0, 1\], but got -0.5, 1.5"),
        (lambda: weighted([A, B], [-0.5, 1.5]), r"expected numbers in \[0, 1\], but got -0.5, 1.5"),
        (lambda: weighted([A, B], [0.5, 0.6]), r"expected a sum of 1, but 0.5 \+ 0.6 = 1.1"),
        (lambda: weighted([A, B], [0.5]), "expected 2 for the method weighted"),
        (lambda: soup([A]), "expected at least 2 for the method soup, but got 1"),
        (lambda: merge_states("slerp", [A, B], [0.5, 0.5]), "needs the model that all others were trained from"),
        (lambda: merge_states("lerp", [A, B], [0.5, 0.5], C), "the method lerp takes none"),
        (lambda: merge_states("median", [A, B]), "expected one of .*'lerp'.* but got 'median'"),
        (lambda: weighted([A, B], [float("nan"), 1.0]), "expected finite numbers, but got nan"),
    ],
)
def test_requests_that_do_not_fit(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        call()
