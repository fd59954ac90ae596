"""Arithmetic on state dicts. Every formula is one function of tensors, applied to each name.

Computed in float32 (float64 where the checkpoint is), written back in the checkpoint's dtype: the widest of the merged
ones. Integer and boolean tensors are no weights: they must be equal, and are kept. Tied tensors stay tied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import chain

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Problem, listed
from cfg_distill.folders.numbers import not_numbers
from cfg_distill.merging.coefficients import InnerProducts, coefficients
from cfg_distill.merging.methods import problems_of_merge

State = Mapping[str, Tensor]
Compute = Callable[[Iterable[Tensor]], Tensor]


def lerp(a: State, b: State, weight: float) -> dict[str, Tensor]:
    r"""Linear interpolation: :math:`\theta(l) = (1 - l)\,\theta_a + l\,\theta_b`.

    The merge weight chooses between quality and diversity at deployment (Cideron et al., ICLR 2025, section 3.3). The ends
    are exact. A weight above 1 goes on in the direction from a to b, beyond what was trained (extrapolation: Zheng et al.,
    arXiv 2404.16792).

    Args:
        a: the state dict at weight 0.
        b: the state dict at weight 1.
        weight: l, at most 5 away from 0 and from 1.

    Raises:
        ConfigError: names or shapes differ, or an integer tensor does, or the weight is farther.

    Example:
        >>> lerp({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
        {'w': tensor([0.2500, 0.2500])}
    """
    return merge_states("lerp", [a, b], [1 - weight, weight])


def slerp(a: State, b: State, start: State, weight: float) -> dict[str, Tensor]:
    r"""Spherical interpolation of task vectors :math:`d = \theta - \theta_\text{start}`, tensor by tensor.

    .. math:: \theta_\text{start}
        + \frac{\sin((1-l)\,\Omega)}{\sin\Omega}\, d_a + \frac{\sin(l\,\Omega)}{\sin\Omega}\, d_b

    with :math:`\Omega` the angle between the two task vectors of the tensor. Falls back to LERP where the sine is
    small: a task vector that is zero, or two that are parallel or opposite. Source: WARP, arXiv 2406.16768, Eq. 4.

    Args:
        a: the state dict at weight 0.
        b: the state dict at weight 1.
        start: the state dict that both were trained from.
        weight: l, in [0, 1].

    Raises:
        ConfigError: as :func:`lerp`, or the weight is outside [0, 1].
    """
    return merge_states("slerp", [a, b], [1 - weight, weight], start)


def liti(start: State, merged: State, weight: float) -> dict[str, Tensor]:
    r"""Linear interpolation towards the start model: :math:`(1 - e)\,\theta_\text{start} + e\,\theta_\text{merged}`.

    Source: WARP, arXiv 2406.16768, section 3.3.

    Args:
        start: the state dict at weight 0.
        merged: the state dict at weight 1.
        weight: e, in [0, 1].

    Raises:
        ConfigError: as :func:`lerp`.
    """
    return merge_states("liti", [merged], [weight], start)


def soup(states: Sequence[State]) -> dict[str, Tensor]:
    """The uniform mean of two or more state dicts (model soups, arXiv 2203.05482). Raises as :func:`lerp`."""
    return merge_states("soup", states)


def weighted(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The mean of two or more state dicts under weights in [0, 1] that sum to 1. Raises as :func:`lerp`."""
    return merge_states("weighted", states, weights)


def ema(states: Sequence[State], decay: float) -> dict[str, Tensor]:
    r"""The moving average of checkpoints, oldest first: :math:`\bar\theta \leftarrow m\,\bar\theta + (1 - m)\,\theta`.

    It begins at the first state dict. Raises as :func:`lerp`.

    Args:
        states: two or more state dicts.
        decay: m, in [0, 1].
    """
    return merge_states("ema", states, [decay])


def merge_states(
    method: str, states: Sequence[State], weights: Sequence[float] = (), start: State | None = None
) -> dict[str, Tensor]:
    """Merge state dicts by the name of a method.

    Args:
        method: a name of :data:`METHODS`.
        states: the models.
        weights: as the method asks.
        start: the model that all others were trained from, for the methods that need it.

    Raises:
        ConfigError: the request does not fit the method; names or shapes differ; an integer tensor differs.
    """
    found = problems_of_merge(method, len(states), weights, start is not None)
    every = ([] if start is None else [start]) + list(states)
    labels = ([] if start is None else ["start"]) + [f"model {number}" for number in range(1, len(states) + 1)]
    if not found and states:
        found = mismatches([{name: signature(tensor) for name, tensor in state.items()} for state in every], labels)
    if found:
        raise ConfigError(found)
    unequal = [name for name in every[0] if not_averaged(every[0][name].dtype) and not _all_equal(every, name)]
    if unequal:
        raise ConfigError(f"Integer tensors differ between the models, and have no mean: {listed(unequal)}.")

    compute = tensor_function(method, weights, len(states))
    merged: dict[str, Tensor] = {}
    done: dict[tuple[object, ...], Tensor] = {}
    for name in every[0]:
        tensors = [state[name] for state in every]
        key = tuple((tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
                    for tensor in tensors)  # fmt: skip
        if key not in done:
            done[key] = merge_tensors(tensors, [tensor.dtype for tensor in tensors], compute)
        merged[name] = done[key]
    return merged


def merge_tensors(tensors: Iterable[Tensor], dtypes: Sequence[torch.dtype], compute: Compute) -> Tensor:
    """One tensor of the result: computed in float32 or wider, returned in the widest of the dtypes.

    Args:
        tensors: the tensor of each model, the start model first where there is one; read one after the other.
        dtypes: their dtypes.
        compute: the formula, from :func:`tensor_function`.
    """
    dtype = reduce(torch.promote_types, dtypes)
    if not_averaged(dtype):
        return next(iter(tensors)).clone()
    wide = torch.promote_types(dtype, torch.float32)
    read = (tensor.detach().to(wide) for tensor in tensors)
    first = next(read)
    if first.ndim > 1:
        return compute(chain([first], read)).to(dtype, copy=True)
    several = [first, *read]
    same = torch.stack([tensor == first for tensor in several]).all(0)  # minus infinity has no mean with itself
    return torch.where(same, first, compute(iter(several))).to(dtype)


def tensor_function(method: str, weights: Sequence[float], number: int) -> Compute:
    """The formula of a method for one tensor of each model, the start model first where the method has one."""
    if method == "slerp":
        return lambda tensors: _on_arc(tuple(tensors), weights)
    if method == "sum":
        return partial(_summed, weights=weights)
    _, *shares = coefficients(method, weights, number)
    if method in ("lerp", "liti"):
        return lambda tensors: torch.lerp(*tensors, shares[-1])  # type: ignore[call-overload]
    return partial(_averaged, shares=shares, of_past=method == "ema")


def _summed(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    r""":math:`\theta_0 + \sum_i w_i\,(\theta_i - \theta_0)`: a tensor that is equal in all models stays so to the last bit."""
    start, *models = tensors
    total = start
    for tensor, weight in zip(models, weights, strict=True):
        total = total + weight * (tensor - start)
    return total


def _averaged(tensors: Iterable[Tensor], shares: Sequence[float], of_past: bool) -> Tensor:
    r"""The sum of tensors, each times its share, as a chain of interpolations.

    .. math:: a_i = \frac{s_1 + \ldots + s_{i-1}}{s_1 + \ldots + s_i}\, a_{i-1} + \frac{s_i}{s_1 + \ldots + s_i}\, \theta_i

    Not a plain sum: a tensor that is equal in all models (a frozen codec, say) stays so to the last bit.

    Args:
        tensors: of each model, read one after the other.
        shares: of each model.
        of_past: interpolate by the first quotient and not by the second. They differ in the last bit: a decay near 1 is
            rounded as it is, and not its distance from 1.
    """
    average: Tensor | None = None
    before = 0.0
    for tensor, share in zip(tensors, shares, strict=True):
        total = before + share
        if average is None:
            average = tensor
        elif of_past:
            average = torch.lerp(tensor, average, before / total if total else 0.0)
        else:
            average = torch.lerp(average, tensor, share / total if total else 0.0)
        before = total
    assert average is not None
    return average


def _on_arc(tensors: tuple[Tensor, ...], weights: Sequence[float]) -> Tensor:
    start, a, b = tensors
    if weights[-1] in (0, 1):
        return b if weights[-1] else a
    delta_a, delta_b = a - start, b - start

    def inner_products() -> InnerProducts:
        pairs = ((delta_a, delta_b), (delta_a, delta_a), (delta_b, delta_b))
        return InnerProducts(*(float((x.double() * y.double()).sum()) for x, y in pairs))

    of_start, share_a, share_b = coefficients("slerp", weights, 2, inner_products)
    # Without a share of the start model the arc is the line.
    return start + share_a * delta_a + share_b * delta_b if of_start else torch.lerp(a, b, share_b)


# What can be merged


def signature(tensor: Tensor) -> tuple[tuple[int, ...], bool]:
    """What must agree between models for one name: the shape, and whether the tensor is averaged."""
    return tuple(tensor.shape), not_averaged(tensor.dtype)


def not_averaged(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype are kept instead of averaged."""
    return not (dtype.is_floating_point or dtype.is_complex)


def finite(values: Tensor, name: str, where: str = "") -> Tensor:
    """The values of a tensor, if all are numbers (:func:`~cfg_distill.folders.numbers.not_numbers`).

    Args:
        values: of the tensor.
        name: of the tensor.
        where: what has the tensor, for the message; empty for the merge.

    Raises:
        ConfigError: some are NaN or infinite.
    """
    if not_numbers([(name, values)]):
        what = f"Tensor {name} of `{where}`" if where else f"The merge of {name}"
        raise ConfigError(
            f"{what} holds values that are no numbers (NaN or infinite). The model is broken: take another, or export an"
            " earlier checkpoint."
        )
    return values


def mismatches(models: Sequence[Mapping[str, tuple[tuple[int, ...], bool]]], labels: Sequence[str]) -> list[Problem]:
    """Where the names and signatures of models differ from the first model's: a sentence per model and kind."""
    first, wrong = models[0], []
    for model, label in zip(models[1:], labels[1:], strict=True):
        missing, extra = first.keys() - model.keys(), model.keys() - first.keys()
        if missing:
            wrong.append(f"Tensors of {labels[0]} that {label} lacks: {listed(sorted(missing), 3)}.")
        if extra:
            wrong.append(f"Tensors of {label} that {labels[0]} lacks: {listed(sorted(extra), 3)}.")
        common = sorted(first.keys() & model.keys())
        shapes = [f"{name} {list(first[name][0])} vs {list(model[name][0])}"
                  for name in common if first[name][0] != model[name][0]]  # fmt: skip
        if shapes:
            wrong.append(f"Shapes differ between {labels[0]} and {label}: {listed(shapes, 3)}.")
        kinds = [name for name in common if first[name][0] == model[name][0] and first[name][1] != model[name][1]]
        if kinds:
            wrong.append(f"Integer in one of {labels[0]} and {label}, floating point in the other: {listed(kinds, 3)}.")
    if wrong:
        wrong.insert(0, "Only models of one architecture, trained from one start model, can be merged. Name others.")
    return [Problem("", text) for text in wrong]


def _all_equal(states: Sequence[State], name: str) -> bool:
    return all(torch.equal(states[0][name], state[name]) for state in states[1:])
