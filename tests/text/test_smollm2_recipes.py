"""The fits and a merge of SmolLM2's studies, on the real model and with every key they set, for one short step each."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_study import read_study

from cfg_distill.cli import main
from cfg_distill.folders.adapters import AdapterFolder
from cfg_distill.generators import open_generator
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw

SHORT = [
    "--trainer.max_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.init_args.batch_size=1",
    "--model.sampling.max_new_tokens=8",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize("name", ["study", "study_gpu"])
def test_one_step_of_each_fit_and_one_merge(name: str, folder: Path) -> None:
    study = read_study(f"recipes/smollm2/{name}.yaml")
    for fit, said in study.fits.items():
        begins = [f"--model.start={said.start}"] if said.start else []  # the folder that was exported below
        assert main([*said.words, *SHORT, f"--trainer.default_root_dir=runs/{fit}", *begins]) == 0
        (checkpoint,) = Path("runs", fit).rglob("last.ckpt")
        assert main(["export", "--checkpoint", str(checkpoint), "--out", fit, "--weights", "raw"]) == 0
        assert all(factors.b_OR.any() for factors in AdapterFolder(fit).adapter().values())  # begins as zeros: it moved
    half = study.merges["half"]
    weights = [str(weight) for weight in half.weights]
    assert (
        main(["merge", "--models", *half.models, "--weights", *weights, "--method", half.method, "--out", "half"]) == 0
    )
    samples = draw(open_generator("half").load(), ["Describe a harbor town."], Sampling(samples=2, max_new_tokens=4))
    assert len(samples.outputs) == 2 and all(samples.outputs)
