"""A study of LoRA students: fits, exports, merges and evaluation on adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_study import read_study
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import EvaluateRequest, evaluate_request
from cfg_distill.merging import lerp, slerp
from cfg_distill.study.check import problems_of

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
LORA = {"model.generator.init_args.lora": {"rank": 3, "alpha": 6.0, "targets": ["q_proj", "up_proj"]}}
Change = Callable[[dict[str, Any]], Path]


@pytest.fixture
def adapted(change: Change) -> Change:
    """The study with LoRA in both fits, and a second merge."""
    change(
        {
            "fits/quality/overrides": {**LORA, "trainer.max_steps": 6},
            "fits/diversity/overrides": {**LORA, "trainer.max_steps": 6, "model.guidance.scale": 3.0},
            "merges/arc": {
                "models": ["quality", "diversity"],
                "weights": [0.5, 0.5],
                "method": "slerp",
                "start": "base",
            },
            "evaluation/seeds": [0],
        }
    )
    return change


def whole(folder: str) -> dict[str, torch.Tensor]:
    base = AutoModelForCausalLM.from_pretrained("base")
    return PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()


@pytest.mark.slow
def test_a_study_of_adapters_runs_to_its_end(real: Path, adapted: Change) -> None:
    assert main(["study", "study.yaml"]) == 0
    assert main(["study", "study.yaml"]) == 0  # nothing is left to do
    ranks = {folder: json.loads(Path(f"out/{folder}/adapter_config.json").read_text())["r"]
             for folder in ("students/quality", "students/diversity", "merges/half", "merges/arc")}  # fmt: skip
    assert ranks == {"students/quality": 3, "students/diversity": 3, "merges/half": 6, "merges/arc": 6}
    quality, diversity = whole("out/students/quality"), whole("out/students/diversity")
    start = AutoModelForCausalLM.from_pretrained("base").state_dict()
    expected = {"half": lerp(quality, diversity, 0.5), "arc": slerp(quality, diversity, start, 0.5)}
    for name, state in expected.items():
        merged = whole(f"out/merges/{name}")
        for key, tensor in state.items():
            torch.testing.assert_close(merged[key], tensor, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(quality[key], start[key]) for key in start)
    front = json.loads(Path("out/front.json").read_text())
    systems = {system["name"]: system for system in front["systems"]}
    assert list(systems) == ["base", "base T 0.8", "guidance 2", "quality", "diversity", "half", "arc"]
    assert systems["half"]["knob"] == 0.5 and systems["guidance 2"]["relative_cost"] == 2.0


def test_an_adapter_folder_is_evaluated_on_its_base(real: Path, capsys: pytest.CaptureFixture) -> None:
    from cfg_distill.generators import CausalLM, LoRA
    from cfg_distill.generators.lora import adapter_of

    torch.manual_seed(0)
    student = CausalLM("base", lora=LoRA(rank=2)).load()
    with torch.no_grad():
        for _, b_OR, _ in adapter_of(student.model).values():
            b_OR.normal_()
    Path("adapter").mkdir()
    student.save("adapter")
    student.merge_adapter().save("merged")
    settings = {"samples": 3, "max_new_tokens": 5, "batch_size": 2}
    evaluate_request(EvaluateRequest(["base", "adapter", "merged"], "report.txt", out="ev", **settings))
    base, adapter, merged = json.loads(Path("ev/front.json").read_text())["systems"]
    assert adapter["diversity"] == merged["diversity"] != base["diversity"]
    Path("adapter/adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"expected adapter_model.safetensors in the adapter folder `adapter`"):
        evaluate_request(EvaluateRequest(["adapter"], "report.txt", **settings))


def test_adapters_and_whole_models_are_told_apart_before_anything_runs(place: Path, adapted: Change) -> None:
    assert not [problem for problem in problems_of(read_study("study.yaml")) if "adapter" in str(problem)]
    found = problems_of(read_study(adapted({"fits/quality/overrides": {}})))
    assert any("`fits.diversity.start`: expected an adapter" in str(problem) for problem in found)
    for merge in ("half", "arc"):
        assert any(
            f"`merges.{merge}.models`" in str(problem) and "only quality is a whole one" in str(problem)
            for problem in found
        )


def test_a_dial_is_for_adapters(place: Path, adapted: Change, change: Change) -> None:
    study = adapted({"systems/low": {"model": "quality", "dial": 0.5}, "systems/odd": {"model": "quality", "dial": -1}})
    found = [str(problem) for problem in problems_of(read_study(study)) if "dial" in str(problem)]
    assert len(found) == 1 and found[0].startswith("Key `systems.odd.dial`: expected a number of at least 0")
    whole = change({"fits/quality/overrides": {}, "fits/diversity/overrides": {}, "baselines/base/dial": 0.5})
    found = [str(problem) for problem in problems_of(read_study(whole)) if "dial" in str(problem)]
    assert [each.split(":")[0] for each in found] == [
        "Key `baselines.base.dial`",
        "Key `systems.low.dial`",
        "Key `systems.odd.dial`",
        "Key `systems.odd.dial`",
    ]
