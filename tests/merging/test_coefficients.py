"""The coefficients of merges: against the recursions and angles that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cfg_distill.merging.coefficients import InnerProducts, coefficients


@pytest.mark.parametrize("number", [2, 3, 7])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_ema_is_its_recursion(number: int, decay: float) -> None:
    average = np.eye(number)[0]
    for model in np.eye(number)[1:]:
        average = decay * average + (1 - decay) * model
    start, *others = coefficients("ema", [decay], number)
    assert start == 0
    np.testing.assert_allclose(others, average, rtol=1e-12)


def test_the_methods_without_values() -> None:
    assert coefficients("lerp", [0.3, 0.7], 2) == [0.0, 0.3, 0.7]
    assert coefficients("liti", [0.25], 1) == [0.75, 0.25]
    assert coefficients("sum", [1.5, -0.25], 2) == [-0.25, 1.5, -0.25]
    assert coefficients("soup", [], 4) == [0.0, 0.25, 0.25, 0.25, 0.25]
    assert coefficients("weighted", [0.2, 0.3, 0.5], 3) == [0.0, 0.2, 0.3, 0.5]


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
def test_slerp_divides_the_angle(weight: float) -> None:
    """In the plane of two task vectors the result stands at the share ``weight`` of the angle between them."""
    a, b = np.array([2.0, 0.0]), 2.0 * np.array([math.cos(1.2), math.sin(1.2)])
    start, of_a, of_b = coefficients("slerp", [1 - weight, weight], 2, lambda: InnerProducts(a @ b, a @ a, b @ b))
    merged = of_a * a + of_b * b
    assert np.linalg.norm(merged) == pytest.approx(2.0)
    assert math.atan2(merged[1], merged[0]) == pytest.approx(1.2 * weight)
    assert start == pytest.approx(1 - of_a - of_b)


@pytest.mark.parametrize("products", [(0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (math.nan, math.nan, 1.0)])
def test_slerp_is_lerp_where_there_is_no_angle(products: tuple[float, float, float]) -> None:
    assert coefficients("slerp", [0.75, 0.25], 2, lambda: InnerProducts(*products)) == [0.0, 0.75, 0.25]


def test_slerp_asks_for_no_values_at_its_ends() -> None:
    def never() -> InnerProducts:
        raise AssertionError

    assert coefficients("slerp", [1.0, 0.0], 2, never) == [0.0, 1.0, 0.0]
    assert coefficients("slerp", [0.0, 1.0], 2, never) == [0.0, 0.0, 1.0]
