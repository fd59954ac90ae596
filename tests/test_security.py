"""docs/security.md, as far as the code alone can be asked: what is data runs no code, and names no file elsewhere."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest
from house import sources

from cfg_distill.errors import ConfigError
from cfg_distill.folders import problems_of_folder
from cfg_distill.merging.safetensors_io import FolderWeights

FORBIDDEN = {"eval", "exec", "__import__"}
FORBIDDEN_OF = {"os": {"system", "popen"}, "pickle": {"load", "loads"}, "yaml": {"unsafe_load", "full_load"}}


@cache
def calls() -> list[tuple[str, ast.Call]]:
    return [
        (f"{file.name}:{node.lineno}", node)
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_torch_loads_weights_only() -> None:
    loads = [(place, call) for place, call in calls() if name_of(call) == "torch.load"]
    assert loads
    for place, call in loads:
        given = {each.arg: ast.unparse(each.value) for each in call.keywords}
        assert given.get("weights_only") == "True", place


def test_nothing_in_the_package_runs_text() -> None:
    for place, call in calls():
        module, _, name = name_of(call).rpartition(".")
        assert not (module == "" and name in FORBIDDEN), place
        assert name not in FORBIDDEN_OF.get(module, ()), place
        given = {each.arg: ast.unparse(each.value) for each in call.keywords}
        assert given.get("shell", "False") == "False" and given.get("trust_remote_code", "False") == "False", place


def test_yaml_has_one_loader() -> None:
    """Its limits hold for every file: recipes, studies, metrics, options."""
    loads = [place for place, call in calls() if name_of(call) in ("yaml.load", "yaml.safe_load", "yaml.parse")]
    assert {place.partition(":")[0] for place in loads} == {"documents.py"}


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "inner/../../x.safetensors"])
def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path, shard: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    (problem,) = problems_of_folder(str(tmp_path))
    assert f"expected names of files in this folder, but got {shard}" in str(problem)
    with pytest.raises(ConfigError, match="expected names of files in this folder"):
        FolderWeights(tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {"a": 3}}', '{"weight_map": []}'])
def test_an_index_without_a_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    (problem,) = problems_of_folder(str(tmp_path))
    assert "expected the file of each tensor under `weight_map`" in str(problem)
