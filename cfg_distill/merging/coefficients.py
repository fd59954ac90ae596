r"""The coefficients of every merge, of tensors and of adapters alike: :math:`\theta = c_0\,\theta_0 + \sum_i c_i\,\theta_i`.

:math:`\theta_0` is the model that the others were trained from. No torch in here: numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

SMALL_SINE = 1e-4
"""Below this sine of the angle the quotients of SLERP lose their digits, and LERP takes its place.

At an angle near 0 the two are equal to 1e-8. At an angle near pi they are not: SLERP keeps the length of the task vectors, on
an arc whose plane is undefined at pi itself, and LERP passes near the start model. So the merge jumps there.
"""


class InnerProducts(NamedTuple):
    r"""Of the task vectors :math:`d = \theta - \theta_0` of two models, in float64: the angle is a difference of large sums.

    Attributes:
        ab: :math:`\langle d_a, d_b \rangle`.
        aa: :math:`\langle d_a, d_a \rangle`.
        bb: :math:`\langle d_b, d_b \rangle`.
    """

    ab: float
    aa: float
    bb: float


def coefficients(
    method: str, weights: Sequence[float], number: int, inner_products: Callable[[], InnerProducts] | None = None
) -> list[float]:
    r"""The coefficient of the start model, then of each model.

    ======== ============================================================================================
    lerp     :math:`1 - l,\ l`, as the weights say
    slerp    :math:`c_0 = 1 - c_a - c_b,\ c_a = \sin((1-l)\,\Omega) / \sin\Omega,\ c_b = \sin(l\,\Omega) / \sin\Omega`
             with :math:`\cos\Omega = \langle d_a, d_b \rangle / (|d_a|\,|d_b|)`; those of lerp where the sine is small
    liti     :math:`c_0 = 1 - e,\ e`
    soup     :math:`1 / n` each
    weighted the weights
    sum      :math:`1 - \sum_i w_i`, then the weights :math:`w_i`: dials of several adapters on one base
    ema      :math:`m^{n-1}`, then :math:`(1 - m)\,m^{n-i}` for model i = 2, ..., n, with m the decay
    ======== ============================================================================================

    Args:
        method: a name of :data:`cfg_distill.merging.METHODS`.
        weights: as the method asks.
        number: of models, the start model not counted.
        inner_products: for ``slerp``, the only method that looks at values; asked only where the angle matters.

    Example:
        >>> coefficients("ema", [0.5], 3)
        [0.0, 0.25, 0.25, 0.5]
    """
    if method == "slerp":
        assert inner_products is not None
        return _of_arc(weights[-1], inner_products)
    if method == "liti":
        return [1 - weights[0], weights[0]]
    if method == "sum":
        return [1 - math.fsum(weights), *weights]
    if method == "soup":
        return [0.0, *[1 / number] * number]
    if method == "ema":
        (decay,) = weights
        return [0.0, decay ** (number - 1), *((1 - decay) * decay ** (number - 1 - i) for i in range(1, number))]
    return [0.0, *weights]


def _of_arc(weight: float, inner_products: Callable[[], InnerProducts]) -> list[float]:
    line = [0.0, 1 - weight, weight]
    if weight in (0, 1):
        return line
    products = inner_products()
    norms = math.sqrt(max(products.aa, 0.0) * max(products.bb, 0.0))
    cosine = min(1.0, max(-1.0, products.ab / norms)) if norms > 0 else 1.0
    angle = math.acos(cosine)
    if math.sin(angle) < SMALL_SINE:
        return line
    first, second = (math.sin(share * angle) / math.sin(angle) for share in (1 - weight, weight))
    return [1 - first - second, first, second]
