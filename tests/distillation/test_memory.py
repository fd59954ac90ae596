"""Out of memory: the same step in smaller parts. (What is said where that cannot help: tests/test_distillation.py.)"""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faulty import REFUSALS, Refusing
from tiny_fits import batches, snapshot, student_of, trainer
from torch import nn

from cfg_distill import CFGDistillation
from cfg_distill.distillation.execution import Execution
from cfg_distill.distillation.memory import with_less_memory


def fitted(folder: str, root: Path, refusing: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A student after three steps of two accumulated batches, and the memory it had."""
    defaults: dict[str, Any] = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.5)}
    module = student_of(folder, **(defaults | settings))
    memory = None if refusing is None else Refusing(module, **refusing)
    trainer([], root, accumulate_grad_batches=2).fit(module, batches(6))
    return module, memory


@pytest.fixture(scope="module")
def unbroken(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return snapshot(fitted(tiny_model, tmp_path_factory.mktemp("unbroken"))[0])


def assert_same(module: CFGDistillation, unbroken: dict[str, torch.Tensor]) -> None:
    for name, tensor in snapshot(module).items():
        torch.testing.assert_close(tensor, unbroken[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("at", "where"),
    [
        (0, "forward"),
        (3, "backward"),
        *(pytest.param(at, "backward", marks=pytest.mark.slow) for at in (0, 1, 2, 5)),
        *(pytest.param(at, "forward", marks=pytest.mark.slow) for at in (1, 2, 3, 5)),
    ],
)
def test_a_refusal_at_any_micro_batch_changes_nothing(
    tiny_model: str, tmp_path: Path, unbroken: dict[str, torch.Tensor], where: str, at: int
) -> None:
    """Calls 0 to 3 are the micro-batches of the first step: the first and the last one of either batch."""
    with pytest.warns(
        UserWarning, match=r"Out of memory in step [01] on rank 0 with 3 samples at once .* 1 at once"
    ) as said:
        module, memory = fitted(tiny_model, tmp_path, {"where": where, "at": at}, micro_batch=3)
    assert memory.fired == 1 and module.micro_batch == 1
    assert len([each for each in said if "Out of memory" in str(each.message)]) == 1
    assert_same(module, unbroken)


@pytest.mark.parametrize("where", [pytest.param("forward", marks=pytest.mark.slow), "backward"])
def test_it_is_halved_until_it_fits_and_said_once(
    tiny_model: str, tmp_path: Path, unbroken: dict[str, torch.Tensor], where: str
) -> None:
    """From the whole batch, 6 samples, over 3 to 1; where gradients are measured too."""
    with pytest.warns(UserWarning, match=r"with 6 samples at once .* Set `model.micro_batch` to 1 to spare") as said:
        module, memory = fitted(tiny_model, tmp_path, {"where": where, "most": 1}, measure_gradients_every=1)
    assert memory.fired == 2 and module.micro_batch == 1
    assert len([each for each in said if "Out of memory" in str(each.message)]) == 1
    assert_same(module, unbroken)


def test_measured_norms_are_the_same(tiny_model: str, tmp_path: Path) -> None:
    whole, _ = fitted(tiny_model, tmp_path, measure_gradients_every=1)
    with pytest.warns(UserWarning, match="Out of memory"):
        halved, memory = fitted(tiny_model, tmp_path, {"where": "backward", "at": 1}, measure_gradients_every=1)
    assert memory.fired == 1
    for name, norm in whole.gradient_norms.items():
        torch.testing.assert_close(halved.gradient_norms[name], norm, rtol=1e-3, atol=1e-6)


def stand_in(**execution: Any) -> Any:
    return SimpleNamespace(
        student=nn.Identity(),
        sampling=SimpleNamespace(samples=4),
        micro_batch=0,
        execution=Execution(**execution),
        global_step=7,
        global_rank=0,
    )


@pytest.mark.parametrize("refusal", REFUSALS)
def test_the_memory_of_the_failed_attempt_is_free(refusal: Exception) -> None:
    """Also what its frames held, and what the exception held: somebody may keep the exception."""
    sizes: list[int] = []
    held: list[Any] = []

    def attempt(size: int) -> int:
        assert all(each() is None for each in held)
        sizes.append(size)
        large = torch.zeros(1000)
        held.append(weakref.ref(large))

        def deeper(tensor: torch.Tensor) -> None:
            view = tensor[:10]
            if size != 4:
                raise refusal
            assert len(view)

        deeper(large)
        return size

    module = stand_in()
    with pytest.warns(UserWarning, match=r"step 7 .* with 16 samples at once \((CUDA out of memory|\[enforce fail)"):
        assert with_less_memory(module, 16, attempt) == 4
    assert sizes == [0, 8, 4] and module.micro_batch == 4 and len(held) == 3


@pytest.mark.parametrize(
    ("error", "execution"),
    [(REFUSALS[0], {"halve_micro_batch": False}), (RuntimeError("shapes do not match"), {}), (ValueError("no"), {})],
)
def test_what_it_leaves_alone(error: Exception, execution: dict[str, bool]) -> None:
    calls = []

    def attempt(size: int) -> None:
        calls.append(size)
        raise error

    with pytest.raises(type(error), match=str(error)[:10]):
        with_less_memory(stand_in(**execution), 16, attempt)
    assert calls == [0]


def test_one_sample_that_does_not_fit_is_a_refusal() -> None:
    sizes = []

    def attempt(size: int) -> None:
        sizes.append(size)
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        with_less_memory(stand_in(), 6, attempt)  # a last batch that is smaller
    assert sizes == [0, 2, 1]
