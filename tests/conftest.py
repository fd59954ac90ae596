"""What tests of several rooms share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

IGNORED = (
    # Lightning's advice on a machine's cores and disks.
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    # LightningCLI calls jsonargparse by names that 4.53 has deprecated.
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
)
"""Beside those of pyproject.toml: classes that pytest imports to read the filter."""
# Many small tensors on few cores: threads only stand in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """``pytest -n 2`` too keeps a file on one process: tests that fork hang where files are mixed.

    The process that hands out the files runs no test, and so imports no library: its workers would wait for that.
    """
    if config.getoption("dist", "no") == "load":
        config.option.dist = "loadfile"
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)  # an import before this one may have loaded it
        for each in IGNORED:
            config.addinivalue_line("filterwarnings", each)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of this run's own, so that what is converted is converted by the code under test, once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    os.environ["CFG_DISTILL_CACHE"] = str(folder)


@pytest.fixture(autouse=True)
def modules_end_with_their_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test writes `my_ladder.py` and imports it; the next test of that name must find its own file, and not this module."""
    before, root = set(sys.modules), str(tmp_path_factory.getbasetemp())
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(root):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's ``seed_everything`` leaves its seed in the environment, for processes of all later tests."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "")
    monkeypatch.delenv("PL_GLOBAL_SEED")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama in a Hugging Face folder; shared, so do not write into it."""
    from tiny import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the test stands in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path
