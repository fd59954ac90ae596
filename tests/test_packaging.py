"""The wheel: what is in it, and that it works in an empty environment, from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = ("cfg_distill", "callbacks", "recipes", "pyproject.toml", "README.md", "LICENSE")


def run(*words: str | Path, folder: Path) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the build leaves nothing in the source tree."""
    source = tmp_path_factory.mktemp("source")
    present = [name for name in TOP_LEVEL if (ROOT / name).exists()]
    excluded = ("--exclude=__pycache__", "--exclude=*.egg-info")
    packed = subprocess.run(["tar", "-C", ROOT, "-cf-", *excluded, *present], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-C", source, "-xf-"], input=packed, check=True)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, source, folder=out)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_callbacks_recipes_and_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, suffixes in (("callbacks", (".py",)), ("recipes", (".yaml", ".txt", ".jsonl"))):
        expected = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
        assert expected
        assert {f"cfg_distill/{path.relative_to(ROOT)}" for path in expected} <= names
    for name in ("base", "encoder", "figures", "rhythms", "judge", "listener"):
        assert f"cfg_distill/tunes/weights/{name}/model.safetensors" in names
        assert f"cfg_distill/tunes/weights/{name}/config.json" in names
    assert "cfg_distill/py.typed" in names
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "Project-URL: Paper, https://arxiv.org/abs/2410.06084" in metadata
    templates = [path for room in ("report", "study") for path in (ROOT / f"cfg_distill/{room}/templates").iterdir()]
    assert templates and {str(path.relative_to(ROOT)) for path in templates} <= names
    # A second importable copy would make two classes of each callback.
    assert not any(name.startswith(("callbacks/", "recipes/", "tests/")) for name in names)


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone. It borrows our dependencies, but not this working tree: packages that a .pth
    file names are importable, while .pth files among them (the editable install) are not read."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, folder=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import cfg_distill; print(cfg_distill.__file__)", folder=folder).stdout
    assert where.strip().startswith(str(packages))
    return folder


def test_recipes_from_another_folder(empty_environment: Path, tmp_path: Path) -> None:
    command = empty_environment / "bin" / "cfg-distill"
    assert "recipes/tunes/quality.yaml" in run(command, "recipes", folder=tmp_path).stdout
    run(command, "recipes", "tunes/quality", folder=tmp_path)
    assert (tmp_path / "quality.yaml").read_text() == (ROOT / "recipes" / "tunes" / "quality.yaml").read_text()


@pytest.mark.slow
def test_a_short_fit_from_another_folder(empty_environment: Path, tmp_path: Path) -> None:
    short = [
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=1",
        "--trainer.enable_progress_bar=false",
        "--model.sampling.max_new_tokens=16",
        "--data.batch_size=2",
        "--data.validation_batch_size=2",
    ]
    command = empty_environment / "bin" / "cfg-distill"
    run(command, "fit", "--config", "recipes/tunes/quality.yaml", *short, folder=tmp_path)
    (checkpoint,) = tmp_path.glob("runs/quality/version_0/checkpoints/last.ckpt")
    run(command, "export", "--checkpoint", checkpoint, "--out", "student", folder=tmp_path)
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_a_module_that_moved_is_found_under_its_old_name_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="`cfg_distill.samples` is `cfg_distill.sampling` now"):
        from cfg_distill.samples import Samples, draw

    from cfg_distill import sampling

    assert Samples is sampling.Samples and draw is sampling.draw
